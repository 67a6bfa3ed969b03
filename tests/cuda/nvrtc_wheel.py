"""NVRTC of its wheel through ctypes, without a driver; and what a cubin says of its kernels.

Prints what docs/gpu-kernels.md quotes: `python tests/cuda/nvrtc_wheel.py sm_90`.
"""

import ctypes
import struct
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from workers.ops.cuda._compile import OPTIONS, joined_source

# Low 12 bits of an instruction, sm_80 to sm_100; checked against nvdisasm 13.
OPCODES = {0x237: "IMMA", 0x83B: "LDSM", 0x387: "STL", 0x983: "LDL", 0x3C4: "REDUX"}
BRANCH = 0x947

_SVAL, _REGISTERS, _FRAME, _PARAMETER = 0x04, 0x2F, 0x11, 0x17


@dataclass
class Kernel:
    """What the compiler made of one kernel."""

    registers: int = 0
    stack_bytes: int = 0
    static_shared_bytes: int = 0
    parameter_bytes: dict[int, int] = field(default_factory=dict)
    instructions: int = 0
    opcodes: Counter = field(default_factory=Counter)
    loops: list[Counter] = field(default_factory=list)
    """Opcodes of the instructions from the target of each backward branch to the branch."""


def library() -> Path | None:
    """libnvrtc of the wheel, or None."""
    try:
        spec = find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:
        return None
    places = spec.submodule_search_locations if spec else None
    found = [path for place in places or () for path in sorted(Path(place).glob("lib/libnvrtc.so.*"))]
    return found[0] if found else None


@cache
def compile_cubin(source: str, architecture: str) -> bytes:
    """The binary for one architecture, compiled as CuPy would."""
    nvrtc = ctypes.CDLL(str(library()))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={architecture}", "-ftz=true")]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert not failed, log.value.decode()
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin.raw


def _sections(elf: bytes) -> dict[str, tuple[int, bytes]]:
    """name: (index, contents) of every section of a 64-bit ELF file; contents of .nv.shared sections are sizes only."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    entry_size, count, names_index = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * entry_size) for i in range(count)]
    names = headers[names_index][4]
    result = {}
    for index, (name, kind, _, _, offset, size) in enumerate(headers):
        text = elf[names + name : elf.index(b"\0", names + name)].decode()
        nobits = 8
        result[text] = (index, bytes(size) if kind == nobits else elf[offset : offset + size])
    return result


def _info(data: bytes):
    """(attribute, payload) of the entries of a .nv.info section."""
    at = 0
    while at < len(data):
        kind, attribute, value = struct.unpack_from("<BBH", data, at)
        at += 4
        payload = b""
        if kind == _SVAL:
            payload, at = data[at : at + value], at + value
        yield attribute, payload


def kernels(cubin: bytes) -> dict[str, Kernel]:
    """Every kernel of a binary by name."""
    sections = _sections(cubin)
    symbols, strings = sections[".symtab"][1], sections[".strtab"][1]
    names = {}
    for place in range(0, len(symbols), 24):
        (name,) = struct.unpack_from("<I", symbols, place)
        names[place // 24] = strings[name : strings.index(b"\0", name)].decode()
    found = {name[6:]: Kernel() for name in sections if name.startswith(".text.")}
    for attribute, payload in _info(sections[".nv.info"][1]):
        if attribute in (_REGISTERS, _FRAME):
            symbol, value = struct.unpack("<II", payload)
            if names[symbol] in found:
                setattr(found[names[symbol]], "registers" if attribute == _REGISTERS else "stack_bytes", value)
    for name, kernel in found.items():
        _fill(kernel, name, sections)
    return found


def _distance(word: int, old: bool) -> int:
    """Bytes that a branch goes from the next instruction; from sm_90 on its low bits are in the third byte."""
    high: int = struct.unpack("<i", struct.pack("<I", word >> 32))[0]
    return high if old else (high >> 2 << 8 | word >> 16 & 0xFF) * 4


def _fill(kernel: Kernel, name: str, sections: dict[str, tuple[int, bytes]]) -> None:
    code = sections[f".text.{name}"][1]
    kernel.instructions = len(code) // 16
    words = [struct.unpack_from("<Q", code, place)[0] for place in range(0, len(code), 16)]
    names = [OPCODES.get(word & 0xFFF, "other") for word in words]
    kernel.opcodes = Counter(names)
    branches = [place for place, word in enumerate(words) if word & 0xFFF == BRANCH]
    old = not words[branches[-1]] >> 16 & 0xFF  # the last branch, behind the code, is to itself: by -16 bytes
    for place in branches:
        begin = place + 1 + _distance(words[place], old) // 16
        if 0 <= begin < place:
            kernel.loops.append(Counter(names[begin : place + 1]))
    shared = sections.get(f".nv.shared.{name}")
    kernel.static_shared_bytes = len(shared[1]) if shared else 0
    for attribute, payload in _info(sections[f".nv.info.{name}"][1]):
        if attribute == _PARAMETER:
            _, ordinal, _, flags = struct.unpack("<IHHI", payload)
            kernel.parameter_bytes[ordinal] = flags >> 18


def _known(opcodes: Counter) -> str:
    return ", ".join(
        [f"{opcodes.total()} instructions", *(f"{opcodes[op]} {op}" for op in OPCODES.values() if opcodes[op])]
    )


def main(architecture: str) -> None:
    for name, kernel in kernels(compile_cubin(joined_source(), architecture)).items():
        print(f"{name}: {kernel.registers} registers, stack {kernel.stack_bytes}, {_known(kernel.opcodes)}")
        for loop in kernel.loops:
            print(f"    a loop: {_known(loop)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
