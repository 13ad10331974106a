"""An executor without Prefect, for tests of the hub: runs the function it is sent."""

from __future__ import annotations

from zfast.codec import decode, encode


class FunctionExecutor:
    """The code blob is not used; parcel 0 is a function, parcel 1 its argument."""

    def __init__(self, notify, identify):
        self._notify = notify

    def run(self, code, context, parcels):
        function, argument = (decode(parcel.open()) for parcel in parcels)
        return [encode(function(argument, self._notify))]

    def close(self):
        pass
