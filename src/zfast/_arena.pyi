from typing import NamedTuple, final

from typing_extensions import Buffer

BACKINGS: tuple[str, ...]

class Memory(NamedTuple):
    total_nbytes: int
    available_nbytes: int

def read_memory(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> Memory: ...
def probe(backing: str, folder: str, nbytes: int) -> int: ...
def start(
    *,
    backing: str,
    folder: str,
    segment_nbytes: int,
    cap_nbytes: int,
    retain_nbytes: int,
    margin_nbytes: int,
) -> None: ...
def started() -> bool: ...
def install_handler(threshold_nbytes: int) -> bool: ...
def remove_handler() -> bool: ...

@final
class Block(Buffer):
    def __len__(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

def allocate(nbytes: int) -> Block: ...
def copy_in(buffer: Buffer) -> Block: ...
def owns(address: int) -> bool: ...

class Publication(NamedTuple):
    segment_id: bytes
    segment_index: int
    generation: int
    block_offset: int
    block_nbytes: int
    offset: int

def publish(address: int, nbytes: int, *, exclusive: bool) -> Publication | None: ...
def unpublish(generation: int) -> bool: ...
def is_sealed(address: int, nbytes: int) -> bool: ...

class Segment(NamedTuple):
    segment_id: bytes
    fd: int
    nbytes: int

def segment(segment_index: int) -> Segment: ...
def released_segments() -> list[int]: ...

@final
class SharedView(Buffer):
    def __len__(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

@final
class Mapping:
    def __init__(self, fd: int, nbytes: int) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def sealed(self) -> bool: ...
    def contains(self, address: int) -> bool: ...
    def view(self, offset: int, nbytes: int, owner: object) -> SharedView: ...

def own_view(segment_index: int, offset: int, nbytes: int, owner: object) -> SharedView: ...

class ArenaStatistics(NamedTuple):
    n_segments: int
    n_retired_segments: int
    n_segments_made: int
    n_blocks: int
    n_publications: int
    n_allocations: int
    n_fallbacks: int
    mapped_nbytes: int
    peak_mapped_nbytes: int
    live_nbytes: int
    peak_live_nbytes: int
    published_nbytes: int
    free_nbytes: int
    retained_nbytes: int
    retired_nbytes: int
    largest_free_nbytes: int
    fragmentation: float

def statistics() -> ArenaStatistics: ...
def prepare(nbytes: int) -> None: ...
def trim(retain_nbytes: int = 0) -> None: ...
