"""Predictors learnt from a server's own length log, and exchanged while it serves.

training_rows  logged answers → what a predictor is trained on
acceptance     whether a new predictor is better than the present one
learner        when to train, accept, place and take back
learner_state  what it has decided, on disk, and the one key of the settings file that it writes
process        the learner as a process of low priority
supervisor     keeps that process alive beside a server
"""
