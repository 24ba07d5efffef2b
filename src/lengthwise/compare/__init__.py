"""Policies compared on one real server: the same requests, the same arrivals, in turn.

specs             policies and loads as users write them
rounds            the comparison: one policy after the other
session           the server, client and settings file that rounds are run with
client            replays requests, and notes when every token arrives
client_process    that in a process of its own
engine_log        what the scheduler wrote of it
own_answers       as many tokens as the served model itself gives
demonstration     the demo

virtual           the same comparison in virtual time
virtual_bench     from the command line to that
virtual_forward   rounds of it whose model computes

simulated         what verbs that simulate have in common
tuned             what the tuner chose
state_collection  hidden states for a probe, kept while a model answers
progress          how all of them tell what they are doing
"""
