"""A queue in front of servers that one may not change: the scheduler's order, one hop earlier.

`lengthwise gateway` is an HTTP proxy for OpenAI's API. It lets so many answers be under way at its
upstreams and no more, keeps all others back, and lets them go in the order of the same policies
and guards that the scheduler has.

ranked_queue   who waits and who is in flight, in the scheduler's table and order
upstream       the servers behind, and what each may have in flight
reachability   whether they can be reached, and why not
limits         what may wait, in requests and bytes, of everybody and of one key
dispatcher     a request's turn
lengths        predictions, and what is learnt from answers
usage          how long an answer was, as it passes
request_body   what a body says that matters here
relay          one request to one upstream, and its answer back
server         the routes, and what becomes of each request
configuration  what is decided when it starts; what the settings say, made ready
run            its life, and a polite end
prometheus     what is counted
"""
