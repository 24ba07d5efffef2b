"""Predictors learnt from a server's own length log, and exchanged while it serves.

learner  when to train, accept, place and take back; whether a new predictor is better than the
         present one; what was decided, on disk, and the one key of the settings file that is
         written
process  the learner as a process of low priority, and what keeps it alive beside a server

What a predictor is trained on, from logged answers, is made in `predict.train`.
"""
