"""Transactions and the task runs that are submitted in them, which they do not reach.

A task run in another process commits what it did when it ends, and rolls back nothing: Prefect
knows of its part in a transaction only where both are in one process.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prefect.context import TaskRunContext
from prefect.transactions import BaseTransaction, get_transaction

from zfast.errors import ConfigError

if TYPE_CHECKING:
    from prefect.tasks import Task

_HINT = "call the task instead, or submit one that opens the transaction and calls it"


def _may_be_the_engines(transaction: BaseTransaction | None) -> bool:
    """Whether each that is active has a store, as only a user's without a key has not."""
    while transaction is not None:
        if transaction.store is None:
            return False
        transaction = transaction.get_parent()
    return True


class TransactionCheck:
    """Says at each submit what a transaction that is active there does not do.

    Args:
        log: Where it is said, once a transaction.

    Threads: any.
    """

    def __init__(self, log: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self._log = log
        self._warned_of: Callable[[], BaseTransaction | None] = lambda: None

    def check(self, task: Task[Any, Any]) -> None:
        """Check a task that is about to be submitted.

        Raises:
            ConfigError: It has hooks that the transaction would never, or too early, have run.
        """
        transaction = get_transaction()
        if transaction is None:
            return
        has_hooks = bool(task.on_rollback_hooks or task.on_commit_hooks)
        # Prefect's engine opens one around each task, which its author need not know of.
        is_the_tasks_own = TaskRunContext.get() is not None and _may_be_the_engines(transaction)
        if has_hooks and not is_the_tasks_own:
            raise ConfigError(
                f"task {task.name!r} has hooks of transactions, and is submitted in one: it runs "
                "in another process, where its rollback hooks would never run, and its commit "
                "hooks before the transaction commits",
                hint=_HINT,
            )
        if (has_hooks or not is_the_tasks_own) and self._warned_of() is not transaction:
            self._warned_of = weakref.ref(transaction)
            self._log.warning(
                "Task %r is submitted in %s does not reach the process that it runs in: it is "
                "committed when it ends, and not rolled back. To have it take part, %s.",
                task.name,
                "a task, whose transaction" if is_the_tasks_own else "a transaction, which",
                _HINT,
            )
