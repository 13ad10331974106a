"""What many task runs share: a task's code, a flow run's context, a worker's environment."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import cloudpickle
from prefect.context import FlowRunContext, SettingsContext, TaskRunContext, serialize_context
from prefect.futures import PrefectFuture
from prefect.settings import get_current_settings
from prefect.utilities.annotations import BaseAnnotation
from pydantic import BaseModel

from zfast.errors import CodecError
from zfast.runner.foreman import installed_version
from zfast.runner.job import Blob
from zfast.runner.worker_handle import MAX_BLOBS
from zfast.sharing.handover import Copies

#: What workers of another host must have in the same version; of Python the minor one.
SHARED_PACKAGES = ("python", "zfast", "prefect", "cloudpickle")
#: Run contexts that are known; each task run that submits others has one, while it runs.
MAX_CONTEXTS = 8

if TYPE_CHECKING:
    from prefect.tasks import Task


#: Waited for as they are, and not each thing that iteration gives of them: a State is a model.
_ONE_THING = (BaseAnnotation, BaseModel, Mapping, PrefectFuture, str, bytes)


class OneMap(list[Any]):
    """What the task runs of one ``map``, or one alone, wait for, and what else they share.

    Prefect's engine finds futures and States in it wherever they are, also in a dictionary; what is
    no list of several is one thing to wait for, such as a State, which to Python is several fields.

    That of a map goes through Prefect's ``map`` to each ``submit`` of it: other submits, such as
    those of a generator that Prefect reads there, have no part in it.
    """

    def __init__(self, task: Task[Any, Any], wait_for: object | None) -> None:
        if wait_for is None:
            wait_for = ()
        elif isinstance(wait_for, _ONE_THING) or not isinstance(wait_for, Iterable):
            wait_for = (wait_for,)
        super().__init__(wait_for)
        self.task = task
        #: Pickled with the first of them.
        self.code: Blob | None = None
        #: What was copied so far.
        self.copies: Copies = {}


class Shipper:
    """Turns tasks and run contexts into blobs. Threads: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blobs: dict[bytes, Blob] = {}
        # By the contexts' ids, and gone with the first of them: nothing of a task run that has
        # ended is kept, and no id can come again for another.
        self._contexts: dict[tuple[int, ...], tuple[list[weakref.ref[Any]], Blob]] = {}

    def ship_task(self, task: Task[Any, Any]) -> Blob:
        """A task's code as it is now, with the globals and variables that it closes over.

        It is pickled each time, since those may have changed, and sent if they have.

        Raises:
            CodecError: The task cannot be pickled.
        """
        try:
            blob = Blob.of(cloudpickle.dumps(task))
        except Exception as error:
            raise CodecError(
                f"task {task.name!r} cannot be pickled: {error}",
                hint="keep locks, sockets and open files out of its closure",
            ) from error
        with self._lock:
            # One copy for all the jobs in the queue.
            if len(self._blobs) >= MAX_BLOBS:
                self._blobs.clear()
            return self._blobs.setdefault(blob.digest, blob)

    def ship_context(self) -> Blob:
        """The run context that is active now, without its tags; pickled once while it lasts.

        Raises:
            CodecError: The flow cannot be pickled.
        """
        active = (FlowRunContext.get(), TaskRunContext.get(), SettingsContext.get())
        key = tuple(id(context) for context in active)
        with self._lock:
            known = self._contexts.get(key)
            if known is not None:
                return known[1]
            try:
                blob = Blob.of(cloudpickle.dumps(_serialize_context()))
            except Exception as error:
                raise CodecError(
                    f"the flow run's context cannot be pickled: {error}",
                    hint="keep locks, sockets and open files out of the flow's closure and "
                    "parameters",
                ) from error
            if len(self._contexts) >= MAX_CONTEXTS:
                self._contexts.clear()
            forget = self._forgetting(key)
            lasting = [weakref.ref(each, forget) for each in active if each is not None]
            self._contexts[key] = lasting, blob
            return blob

    def _forgetting(self, key: tuple[int, ...]) -> Callable[[object], object]:
        # It may be called at any time, by the garbage collector with the lock held: so without it.
        contexts = self._contexts
        return lambda _: contexts.pop(key, None)


def _serialize_context() -> dict[str, Any]:
    context = serialize_context()
    # Tags change between submits; they travel with each call.
    context["tags_context"] = {}
    # What a task run that submits others was given is its own: theirs need its id and settings.
    if context["task_run_context"]:
        context["task_run_context"]["parameters"] = {}
    # Results that this process caches in memory are not for the workers.
    for run in ("flow_run_context", "task_run_context"):
        context[run].get("result_store", {}).pop("cache", None)
    settings = context["settings_context"].get("settings")
    url = _ephemeral_api_url()
    if url and isinstance(settings, dict):
        settings.setdefault("api", {})["url"] = url
    return context


def shared_versions() -> dict[str, str]:
    """Versions that another host must have too: it is sent pickled code, and Prefect's states."""
    versions = {name: installed_version(name) for name in SHARED_PACKAGES}
    return {name: version for name, version in versions.items() if version is not None}


def child_environment() -> dict[str, str]:
    """Prefect's settings as variables for the workers, without the secret ones.

    Secrets reach a worker in its context, so that a task's own children do not inherit them.
    """
    settings = get_current_settings()
    plain = settings.to_environment_variables(exclude_unset=True, include_secrets=True)
    masked = settings.to_environment_variables(exclude_unset=True, include_secrets=False)
    environment = {key: value for key, value in plain.items() if masked.get(key) == value}
    url = _ephemeral_api_url()
    if url:
        environment["PREFECT_API_URL"] = url
    return environment


def _ephemeral_api_url() -> str | None:
    """The address of the server that Prefect started for this process, if it did.

    Workers use the driver's, rather than each starting one of its own.
    """
    if get_current_settings().api.url:
        return None
    context = FlowRunContext.get()
    url = getattr(context.client, "api_url", None) if context else None
    return str(url).rstrip("/") if url else None
