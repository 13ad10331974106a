"""What the verbs about events have in common: where events come from, and with which key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from zfast.cli.key_options import Environment, Flag, Folder
from zfast.events.sockets import client_security
from zfast.events.subscription import Subscription, chosen_endpoint


@Parameter(name="*")
@dataclass(frozen=True)
class Source:
    """Where events come from.

    Parameters
    ----------
    environment
        Which one; '*' is every one.  [default: ZFAST_ENVIRONMENT, else default]
    endpoint
        A relay's.  [default: ZFAST_EVENTS_ENDPOINT, else every publisher of yours on this host]
    key
        Which key pair of the key folder is shown to a relay on tcp.
    folder
        The key folder.  [default: ZFAST_KEYS, else ~/.config/zfast/keys]
    insecure
        Allow a relay on tcp of the loopback interface that nothing guards.
    """

    environment: Environment = None
    endpoint: Annotated[str | None, Parameter(show_default=False)] = None
    key: str = "client"
    folder: Folder = None
    insecure: Flag = False

    def subscribe(self, **filters: Any) -> Subscription:
        """Open a subscription.

        Raises:
            ConfigError: A filter is wrong, or the relay takes keys and there are none.
        """
        endpoint = chosen_endpoint(self.endpoint)
        security = None
        if endpoint is not None:
            security = client_security(
                endpoint,
                None,
                insecure=self.insecure,
                environment=None if self.environment == "*" else self.environment,
                key=self.key,
                folder=self.folder,
            )
        return Subscription(
            endpoint,
            environment=self.environment,
            security=security,
            insecure=self.insecure,
            **filters,
        )


#: For verbs that are called without any.
HERE = Source()
