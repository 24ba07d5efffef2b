"""Prompt → length of the answer: predictors, training, calibration, evaluation and artifacts.

Inference needs numpy and numba only; training and evaluating need a tokenizer as well.

load         from a name to a predictor, and those that learn nothing
prediction   what a predictor sees, and what it answers
tokenizer    the served model's tokenizer
extract      from a table of prompts to features
features     what is looked at: words, word pairs, openings, shape
lexical      the default predictor and its baselines
calibration  from a score to tokens
artifact     what was learnt, on disk
worker       a slow predictor in a process of its own
perception   the served model, asked itself
encoder      a fine-tuned language model

train        from a table or a log to a predictor
kinds        what can be trained
losses       what training lowers
descent      how
evaluate     how good a predictor is
ablation     what each of its parts is worth, and how it does on other data
kendall      Kendall's tau
"""

from lengthwise.predict.load import load_predictor
from lengthwise.predict.prediction import Prediction, PredictionError, Predictor, Prompt

__all__ = ["Prediction", "PredictionError", "Predictor", "Prompt", "load_predictor"]
