"""The tenants of an engine by name, in bounded memory."""

from __future__ import annotations

from typing import Final

import numpy as np

from lengthwise.policy.tenants import TENANT, Shares, new_shares, service

MOST: Final = 1024  #: tenants that are told apart at a time; others count with those without a name


class Tenants:
    """Gives tenants their rows, and takes the rows of those that have gone back.

    Attributes:
        shares: what each was served; replaced by a larger one when it is full.
    """

    def __init__(self) -> None:
        self.shares: Shares = new_shares(1)
        self._rows: dict[str, int] = {"": 0}
        self._live = [0]  # requests, by row
        service(0, 0.0)  # compiles

    def arrive(self, name: str) -> int:
        """A request has come; "" is the name of all tenants without one.

        Returns:
            The row of its tenant.
        """
        row = self._rows.get(name)
        if row is None:
            row = self._new_row(name)
        self._live[row] += 1
        return row

    def leave(self, row: int, prompt_tokens: int, output_tokens: int) -> None:
        """A request of a tenant has ended; it counts nothing if it had not begun."""
        self._live[row] -= 1
        if output_tokens > 0:
            self.shares.tenants["ended"][row] += service(prompt_tokens, float(output_tokens))

    def _new_row(self, name: str) -> int:
        if len(self._live) == MOST and not self._forget():
            return 0
        free = set(range(len(self._live))) - set(self._rows.values())
        row = min(free, default=len(self._live))
        if row == len(self._live):
            self._live.append(0)
            if row == len(self.shares.tenants):
                more = np.zeros(row, TENANT)
                tenants = np.concatenate([self.shares.tenants, more])
                self.shares = self.shares._replace(tenants=tenants)
        self._rows[name] = row
        return row

    def _forget(self) -> bool:
        """Half of the tenants that have no request here go, those served least first: they come
        back to hardly less than they had. Whether there were any."""
        ended = self.shares.tenants["ended"]
        idle = [
            (ended[row], name) for name, row in self._rows.items() if name and not self._live[row]
        ]
        for _, name in sorted(idle)[: (len(idle) + 1) // 2]:
            self.shares.tenants[self._rows.pop(name)] = 0
        return bool(idle)
