"""Prompt → length of the answer: predictors, training, calibration, evaluation and artifacts.

Inference needs numpy and numba only; training and evaluating need a tokenizer as well.
"""

from lengthwise.predict.load import load_predictor
from lengthwise.predict.prediction import Prediction, PredictionError, Predictor, Prompt

__all__ = ["Prediction", "PredictionError", "Predictor", "Prompt", "load_predictor"]
