"""Ray Serve's request router by predicted work.

Ray 2.60 (`ray.serve.request_router`, alpha). A router lives in every process that sends requests to
the deployment: with `build_app`, in each replica of the ingress.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from ray.serve.request_router import (
    MultiplexMixin,
    PendingRequest,
    ReplicaID,
    ReplicaResult,
    RequestRouter,
    RunningReplica,
)

from lengthwise.errors import InputError
from lengthwise.policy.replicas import COMPANY
from lengthwise.route.bookings import Bookings, Prefixes, WorkPredictor, body_of, text_of

_NOTHING: Final = np.empty(0)


_MOST_ASKED: Final = 65_536  #: requests that are remembered while nobody says where they went


@dataclass(eq=False)
class _Asked:
    """What a request that is being routed is known to be."""

    expected: float | None  # predicted output tokens
    text: str
    future: asyncio.Future[RunningReplica] | None = None  # says where it goes; heeded already


class PredictedWorkRouter(MultiplexMixin, RequestRouter):  # type: ignore[misc]
    """Sends a request where it costs least, by the predicted lengths of all that were sent.

    A request is booked with its replica when it is chosen, until it has ended, its replica has gone
    or it is too old to be true. How many requests a replica has of other routers, it says itself
    with each answer. Requests without text, or without a prediction, go to the one of two replicas
    that has fewer. Configured by `request_router_kwargs`, see `initialize_state`.
    """

    def initialize_state(
        self,
        predictor: str = "declared",
        tokenizer: str | None = None,
        slots: int = 256,
        order: str = "shortest",
        company: float = COMPANY,
        prompt_token_s: float = 5e-5,
        expires_s: float = 1800.0,
        draws: bool = False,
    ) -> None:
        """Take up `request_router_kwargs`.

        Args:
            predictor: what says lengths: a folder on every node, `declared`, or the URL of
                `lengthwise predict-server`.
            tokenizer: the served model's; None: that of the predictor's folder.
            slots: requests that run at once on a replica: vLLM's --max-num-seqs, or fewer where KV
                memory has no room for so many.
            order: in which replicas serve: `shortest` with a length-aware policy, `arrival` with
                stock vLLM.
            company: of its own length, what a long request waits longer to be among others.
            prompt_token_s: s that a prefilled token takes and a seen prefix saves; 0: no affinity.
            expires_s: after which a booking that nobody has released is dropped.
            draws: look at two replicas only, drawn at random, for many routers; see `Bookings`.

        Raises:
            InputError: one of them makes no sense.
        """
        if order not in ("shortest", "arrival"):
            raise InputError(f"order must be 'shortest' or 'arrival', not {order!r}")
        for name, value, least in (
            ("slots", slots, 1),
            ("company", company, 0),
            ("prompt_token_s", prompt_token_s, 0),
            ("expires_s", expires_s, 0),
        ):
            if not value >= least:
                raise InputError(f"{name} must be at least {least}, not {value}")
        self._work = WorkPredictor(predictor, tokenizer)
        self._bookings = Bookings(
            slots,
            shortest_first=order == "shortest",
            company=company,
            expires_s=expires_s,
            draws=draws,
        )
        self._prefixes = Prefixes()
        self._prompt_token_s = prompt_token_s
        self._asked: dict[str, _Asked] = {}
        # Compiled before the first request comes.
        warm = Bookings(1)
        warm.use({"one": 1}, 0.0)
        warm.book("request", "one", 1.0, 0.0)
        warm.choose(1.0, 0.0)
        warm.choose(None, 0.0)
        warm.release("request", 0.0)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Replicas in order of preference: the best one, then all others together."""
        if pending_request is None:
            return [candidate_replicas]
        among = None
        if pending_request.metadata.multiplexed_model_id:
            among = self.apply_multiplex_routing(pending_request)
        # A router that does not ask for it is asked again at once where all are full.
        pending_request.routing_context.should_backoff = True
        asked = await self._ask(pending_request)
        if pending_request.future.done():
            return []
        now = time.monotonic()
        chosen = self._bookings.choose(
            asked.expected, now, saved_s=self._saved_s(asked.text), among=among
        )
        best = self.curr_replicas.get(chosen)
        if best is None:  # all are full as far as is known, so Serve asks them
            return [[each for each in candidate_replicas if _is_among(each, among)]]
        request = pending_request.metadata.internal_request_id
        self._bookings.book(request, chosen, asked.expected, now)
        rest = [each for each in candidate_replicas if each is not best and _is_among(each, among)]
        return [[best], rest]

    def _saved_s(self, text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        if not text or not self._prompt_token_s:
            return _NOTHING
        return self._prompt_token_s * self._prefixes.seen_tokens(text, self._bookings.rows)

    async def _ask(self, pending: PendingRequest) -> _Asked:
        """What the request is, found out once."""
        request = pending.metadata.internal_request_id
        asked = self._asked.get(request)
        if asked is None:
            body = next(filter(None, map(body_of, pending.args)), {})
            asked = _Asked(await self._work.work(body), text_of(body) if body else "")
            self._asked[request] = asked
            if len(self._asked) > _MOST_ASKED:
                del self._asked[next(iter(self._asked))]
        if asked.future is not pending.future:  # one that was refused has another one
            asked.future = pending.future
            asked.future.add_done_callback(lambda future: self._was_routed(request, asked, future))
        return asked

    def _was_routed(
        self, request: str, asked: _Asked, future: asyncio.Future[RunningReplica]
    ) -> None:
        """Serve has chosen among the replicas that were named, or nobody waits any more."""
        now = time.monotonic()
        if future.cancelled() or future.exception() is not None:
            self._asked.pop(request, None)
            self._bookings.release(request, now)
        else:
            self._bookings.book(request, future.result().replica_id, asked.expected, now)

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult
    ) -> None:
        """A replica has taken the request."""
        request = pending_request.metadata.internal_request_id
        asked = self._asked.pop(request, None)
        if asked is not None and replica_id in self._bookings.replicas:
            self._bookings.book(request, replica_id, asked.expected, time.monotonic())
            if asked.text:
                self._prefixes.add(asked.text, self._bookings.row(replica_id))

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A request has ended at a replica, which may be one that refused it."""
        self._asked.pop(internal_request_id, None)
        self._bookings.release(internal_request_id, time.monotonic(), replica_id)

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """A replica says how many requests it has."""
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        self._bookings.hear(replica_id, num_ongoing_requests, time.monotonic())

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A replica has gone, and what was booked with it."""
        super().on_replica_actor_died(replica_id)
        self._gone(replica_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """These are the replicas now."""
        most = {replica.replica_id: replica.max_ongoing_requests for replica in replicas}
        for name in [name for name in self._bookings.replicas if name not in most]:
            self._gone(name)
        self._bookings.use(most, time.monotonic())
        super().update_replicas(replicas)

    def _gone(self, replica: Hashable) -> None:
        if replica in self._bookings.replicas:
            self._prefixes.forget(self._bookings.row(replica))
            self._bookings.drop(replica, time.monotonic())


def _is_among(replica: RunningReplica, among: Collection[ReplicaID] | None) -> bool:
    return among is None or replica.replica_id in among
