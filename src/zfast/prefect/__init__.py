"""zfast in Prefect. Importing this registers the serializers and the storage block."""

from zfast.prefect.locking import ZfastLocks
from zfast.prefect.serializer import ZfastInlineSerializer, ZfastSerializer
from zfast.prefect.storage import ZfastStorage
from zfast.prefect.task_runner import ZfastTaskRunner

__all__ = [
    "ZfastInlineSerializer",
    "ZfastLocks",
    "ZfastSerializer",
    "ZfastStorage",
    "ZfastTaskRunner",
]
