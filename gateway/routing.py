"""Which vendor account a call goes to: what the service is mapped to, narrowed by what its key is bound to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.errors import Problem, Refusal
from gateway.model import Arrival, Caller


@dataclass(frozen=True, slots=True)
class Router:
    """The accounts in the order of the settings, each with the services mapped to it."""

    services: Mapping[str, tuple[str, ...]]
    """By account; an account without any is for every service that none names."""

    def route(self, arrival: Arrival, caller: Caller) -> str:
        """Return the account: the one asked for by `X-Gateway-Account`, else the first that is permitted.

        Raises: Refusal `account_not_permitted`.
        """
        bound = caller.bindings.accounts
        permitted = [name for name in self._mapped(caller.principal) if not bound or name in bound]
        if arrival.account in permitted:
            return arrival.account
        if arrival.account is None and permitted:
            return permitted[0]
        raise Refusal(Problem.account_not_permitted)

    def _mapped(self, service: str) -> list[str]:
        named = [account for account, services in self.services.items() if service in services]
        return named or [account for account, services in self.services.items() if not services]
