"""How the built-in reference model was made: no part of what is installed.

tokenizer.py  the byte-level BPE tokenizer and the chat template
train.py      python -m scripts.reference_model.train --out DIR
muon.py       its optimiser
evaluate.py   python -m scripts.reference_model.evaluate
"""
