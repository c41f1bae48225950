"""NVIDIA's management library, kept open. The only importer of pynvml.

Initialising NVML costs hundreds of milliseconds on a machine with many GPUs, a reading some microseconds: so it stays
open from the first look on, and is opened again when it says that what it had open is gone. A driver that hangs hangs
whoever asks it: all calls are made in one thread of its own, and nobody waits for it longer than a bound.

Source of every meaning here: NVML API Reference (docs.nvidia.com/deploy/nvml-api).
"""

from __future__ import annotations

import importlib
import os
import queue
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from schemas.observation import Gpu, GpuProcess

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

SIGNS: Final = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg")
"""What is there where a driver of NVIDIA's is; the last under WSL 2. Importing the bindings costs 20 ms, and without a
driver there is nothing to ask."""

ANSWER_SECONDS: Final = 10.0
"""After which a driver that does not answer counts as one that hangs; opening it takes up to seconds where no
persistence daemon keeps it loaded."""

LOST: Final = {
    "NVML_ERROR_GPU_IS_LOST": "has fallen off the bus",
    "NVML_ERROR_RESET_REQUIRED": "needs to be reset",
    "NVML_ERROR_GPU_NOT_FOUND": "has fallen off the bus",
}
"""Answers about one GPU after which it computes nothing any more."""

XID: Final = 0x8
DOUBLE_BIT: Final = 0x2
"""`nvmlEventTypeXidCriticalError` and `nvmlEventTypeDoubleBitEccError`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What NVML says in one look."""

    gpus: tuple[Gpu, ...] = ()
    trouble: str = ""
    """Why it says nothing; empty where it answered, or where there is no driver."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Something that a GPU reported by itself."""

    uuid: str
    xid: int
    """Its number; 0 for an uncorrectable memory error that came as such."""


class NvmlHangsError(Exception):
    """The driver does not answer."""

    def __str__(self) -> str:
        """For people."""
        return "the driver does not answer"


@dataclass(slots=True)
class _Device:
    """What does not change while a GPU is there."""

    handle: Any
    gpu: Gpu


@dataclass(slots=True)
class _Work:
    """Something to be done in NVML's thread."""

    do: Callable[[], Any]
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: BaseException | None = None


class Nvml:
    """NVML of this process. Safe to use from several threads."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._devices: list[_Device] = []
        self._asked: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stuck: _Work | None = None
        self._lock = threading.Lock()
        self._known: dict[str, Gpu] = {}
        """By UUID: GPUs that were seen in this process's life."""

    def read(self) -> Reading:
        """GPUs by UUID, as they are now.

        One that was there and is not any more, or that NVML calls lost, comes with its `fault`. None at all, and no
        trouble, on a machine without a driver: nothing is called there.
        """
        if not present():
            return Reading()
        try:
            return self._run(self._read)
        except NvmlHangsError:
            return Reading(self._blind(), f"the driver has not answered for {ANSWER_SECONDS:g} s")

    def watch(self) -> EventSet | None:
        """What waits for GPUs' own reports; None on a machine without a driver.

        Raises:
            OSError: the driver cannot be opened.
            NvmlHangsError: it does not answer.
        """
        return self._run(self._watch) if present() else None

    def close(self) -> None:
        """Let go of the driver; the next look opens it again."""
        with suppress(NvmlHangsError):
            self._run(self._shut)

    # --- the thread -----------------------------------------------------------------------------------------------

    def _run(self, do: Callable[[], T]) -> T:
        with self._lock:
            if self._stuck is not None and not self._stuck.done.is_set():
                # One wait for a driver that hangs is enough: later looks ask whether it has come back.
                raise NvmlHangsError
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve, name="nvml", daemon=True)
                self._thread.start()
            work = self._stuck = _Work(do)
            self._asked.put(work)
            if not work.done.wait(ANSWER_SECONDS):
                raise NvmlHangsError
        if work.error is not None:
            raise work.error
        return work.result  # type: ignore[no-any-return] # what `do` returns

    def _serve(self) -> None:
        while True:
            work = self._asked.get()
            try:
                work.result = work.do()
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever asked
                work.error = error
            work.done.set()

    # --- in the thread --------------------------------------------------------------------------------------------

    def _read(self) -> Reading:
        trouble = self._open()
        if trouble:
            return Reading(self._blind(), trouble)
        nvml = self._nvml
        try:
            driver, cuda = text(nvml.nvmlSystemGetDriverVersion()), _cuda(nvml)
            if nvml.nvmlDeviceGetCount() != len(self._devices):
                self._enumerate()
            found = [self._look(device, driver, cuda) for device in self._devices]
        except nvml.NVMLError as error:
            # What it had open is gone, perhaps replaced: the next look opens it anew.
            self._shut()
            return Reading(self._blind(), f"NVML: {error}")
        if any(gpu.fault for gpu in found):
            # A GPU that comes back does so under another handle.
            self._devices = []
        gone = self._known.keys() - {gpu.uuid for gpu in found}
        found += [
            replace(_unread(gpu), fault=gpu.fault or LOST["NVML_ERROR_GPU_IS_LOST"])
            for gpu in (self._known[uuid] for uuid in gone)
        ]
        self._known = {gpu.uuid: gpu for gpu in found}
        return Reading(tuple(sorted(found, key=lambda gpu: gpu.uuid)))

    def _blind(self) -> tuple[Gpu, ...]:
        """What was there when it could last be seen: a driver that fails for a moment has not lost what it drives."""
        return tuple(sorted((_unread(gpu) for gpu in self._known.values()), key=lambda gpu: gpu.uuid))

    def _open(self) -> str:
        if self._nvml is not None:
            return ""
        try:
            import pynvml  # noqa: PLC0415 - optional, and only where a driver is
        except ImportError:
            return "nvidia-ml-py is not installed"
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
                # The driver was replaced, and this process has the library of the one before: the next look loads it
                # again from where the new one lies.
                _unload()
            return f"NVML cannot be opened: {error}"
        self._nvml = pynvml
        return ""

    def _enumerate(self) -> None:
        nvml, devices = self._nvml, []
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                devices.append(_Device(handle, _identity(nvml, handle)))
            except nvml.NVMLError as error:
                # One of several that is lost does not hide the others; what it was, is known from before.
                if not _lost(nvml, error):
                    raise
        self._devices = devices

    def _look(self, device: _Device, driver: str, cuda: str) -> Gpu:
        nvml, handle = self._nvml, device.handle
        gpu = replace(device.gpu, driver=driver, cuda=cuda)
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            fault = _lost(nvml, error)
            if not fault:
                raise
            return replace(gpu, fault=fault)
        return replace(
            gpu,
            memory_free=int(memory.free),
            temperature=self._maybe(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            ecc_corrected=self._ecc(handle, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ecc_uncorrected=self._ecc(handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            processes=self._processes(handle),
        )

    def _ecc(self, handle: Any, kind: int) -> int | None:
        """Errors since the driver was loaded; None where the memory has no error correction."""
        nvml = self._nvml
        found = self._maybe(lambda: nvml.nvmlDeviceGetTotalEccErrors(handle, kind, nvml.NVML_VOLATILE_ECC))
        return int(found) if found is not None else None

    def _processes(self, handle: Any) -> tuple[GpuProcess, ...] | None:
        listed = self._maybe(lambda: self._nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        if listed is None:
            return None
        found = {int(item.pid): GpuProcess(int(item.pid), item.usedGpuMemory) for item in listed}
        return tuple(process for _, process in sorted(found.items()))

    def _maybe(self, ask: Callable[[], Any]) -> Any:
        """What not every GPU or driver can say; None where it cannot."""
        nvml = self._nvml
        unsaid = (
            nvml.NVML_ERROR_NOT_SUPPORTED,
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            nvml.NVML_ERROR_NO_PERMISSION,
            nvml.NVML_ERROR_NO_DATA,
        )
        try:
            return ask()
        except nvml.NVMLLibraryMismatchError:
            return None
        except nvml.NVMLError as error:
            if error.value in unsaid:
                return None
            raise

    def _watch(self) -> EventSet | None:
        if trouble := self._open():
            raise OSError(trouble)
        nvml = self._nvml
        # Counted by the library: whoever reads may let go of the driver while somebody waits in it.
        nvml.nvmlInit()
        try:
            self._enumerate()
            events = EventSet(nvml, nvml.nvmlEventSetCreate())
        except nvml.NVMLError as error:
            nvml.nvmlShutdown()
            return EventSet(nvml, None, f"reports of GPUs cannot be read: {error}")
        for device in self._devices:
            events.add(device.gpu.uuid, device.handle)
        return events

    def _shut(self) -> None:
        nvml, self._nvml, self._devices = self._nvml, None, []
        if nvml is not None:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()


class EventSet:
    """Waits for what GPUs report by themselves. Used by one thread; it never takes NVML's."""

    def __init__(self, nvml: Any, handle: Any, trouble: str = "") -> None:
        self._nvml = nvml
        self._handle = handle
        self._uuids: dict[int, str] = {}
        self._troubles = [trouble] if trouble else []

    @property
    def trouble(self) -> str:
        """Whose reports cannot be read, and why; empty where all can."""
        return "; ".join(self._troubles)

    def add(self, uuid: str, handle: Any) -> None:
        """Listen to a GPU, as far as it reports anything."""
        import ctypes  # noqa: PLC0415 - where there is a GPU

        nvml = self._nvml
        try:
            kinds = nvml.nvmlDeviceGetSupportedEventTypes(handle) & (XID | DOUBLE_BIT)
            if kinds:
                nvml.nvmlDeviceRegisterEvents(handle, kinds, self._handle)
        except nvml.NVMLError as error:
            self._troubles.append(f"{uuid} does not report Xid errors: {error}")
            return
        if not kinds & XID:
            self._troubles.append(f"{uuid} does not report Xid errors")
        self._uuids[ctypes.cast(handle, ctypes.c_void_p).value or 0] = uuid

    def wait(self, seconds: float) -> Occurrence | None:
        """The next report; None when none came within so many seconds.

        Raises:
            OSError: the driver can no longer be waited for.
        """
        import ctypes  # noqa: PLC0415 - as above

        nvml = self._nvml
        try:
            event = nvml.nvmlEventSetWait_v2(self._handle, round(seconds * 1000))
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_TIMEOUT:
                return None
            raise OSError(f"NVML: {error}") from error
        uuid = self._uuids.get(ctypes.cast(event.device, ctypes.c_void_p).value or 0, "")
        return Occurrence(uuid, int(event.eventData) if event.eventType & XID else 0)

    @property
    def hears(self) -> bool:
        """Whether there is anybody to wait for."""
        return self._handle is not None and bool(self._uuids)

    def close(self) -> None:
        """Wait no more."""
        if self._handle is not None:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlEventSetFree(self._handle)
                self._nvml.nvmlShutdown()
            self._handle = None


def present() -> bool:
    """Whether this machine has a driver of NVIDIA's."""
    return any(os.path.exists(path) for path in SIGNS)  # noqa: PTH110 - devices, looked at in every pass


def _identity(nvml: Any, handle: Any) -> Gpu:
    return Gpu(
        uuid=text(nvml.nvmlDeviceGetUUID(handle)),
        name=text(nvml.nvmlDeviceGetName(handle)),
        memory=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        driver="",
        capability=".".join(str(part) for part in nvml.nvmlDeviceGetCudaComputeCapability(handle)),
    )


def _unread(gpu: Gpu) -> Gpu:
    """A GPU of which nothing is known at the moment: nothing is free that cannot be seen."""
    return replace(
        gpu, memory_free=0, temperature=None, ecc_corrected=None, ecc_uncorrected=None, processes=None, fault=""
    )


def _lost(nvml: Any, error: Any) -> str:
    names = {getattr(nvml, name): words for name, words in LOST.items()}
    return names.get(error.value, "")


def _cuda(nvml: Any) -> str:
    """The newest CUDA that the driver serves: `12.8`."""
    number = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
    return f"{number // 1000}.{number % 1000 // 10}"


def text(value: str | bytes) -> str:
    """A text of NVML's: bindings of older drivers answer bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _unload() -> None:
    """Forget the library that is loaded, so that the next one is loaded from where it lies then."""
    import _ctypes  # noqa: PLC0415 - after an update of the driver

    module = sys.modules["pynvml"]
    library = module.nvmlLib
    # The bindings keep the library, and each of its functions, in variables of their module.
    importlib.reload(module)
    if library is not None:
        _ctypes.dlclose(library._handle)  # noqa: SLF001 - ctypes has no other way
