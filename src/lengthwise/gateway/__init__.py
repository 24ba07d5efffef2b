"""A queue in front of servers that one may not change: the scheduler's order, one hop earlier.

`lengthwise gateway` is an HTTP proxy for OpenAI's API. It lets so many answers be under way at its
upstreams and no more, keeps all others back, and lets them go in the order of the same policies
and guards that the scheduler has.

ranked_queue   who waits and who is in flight, in the scheduler's order; a request's turn
limits         what may wait, in requests and bytes, of everybody and of one key
upstream       the servers behind: what each may have in flight, and if it can be reached
relay          one request to one upstream, and its answer back
bodies         what a request's body says; how long an answer was, as it passes
lengths        predictions, and what is learnt from answers
configuration  what is decided when it starts; what the settings say, made ready
server         the routes, what becomes of each request, and the gateway's life
prometheus     what is counted
"""
