"""A seccomp filter for the sandbox of Python graders, as the BPF program that bubblewrap installs.

It refuses system calls by which a grader could start processes or threads, open sockets (also those that no
network namespace separates, such as AF_VSOCK), or allocate memory outside its limit. All others pass: they
act on the sandbox alone.
"""

import errno
import os
import struct
import sys
from functools import lru_cache

# linux/audit.h, and the numbers of the calls in each architecture's unistd.h; -1 where it has none.
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_DENIED = {
    "fork": (57, -1),
    "vfork": (58, -1),
    "clone": (56, 220),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_by_handle_at": (304, 265),
}
# The C library then tries `clone`, which is refused.
_ABSENT = {"clone3": (435, 435)}

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, RET|K
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET = 0, 4  # Of struct seccomp_data.
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_X32_BIT = 0x40000000


@lru_cache
def denial_filter() -> bytes | None:
    """Return the filter for this machine, as an array of struct sock_filter; None for another system."""
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in _ARCHITECTURES:
        return None
    audit, column = _ARCHITECTURES[machine]
    program = [
        _instruction(_LOAD, _ARCHITECTURE_OFFSET),
        _instruction(_EQUAL, audit, if_true=1),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER_OFFSET),
        # The calls of the x32 ABI have other numbers.
        _instruction(_AT_LEAST, _X32_BIT, if_false=1),
        _instruction(_RETURN, _ERRNO | errno.EPERM),
    ]
    for calls, reason in ((_DENIED, errno.EPERM), (_ABSENT, errno.ENOSYS)):
        for numbers in calls.values():
            if numbers[column] >= 0:
                program.append(_instruction(_EQUAL, numbers[column], if_false=1))
                program.append(_instruction(_RETURN, _ERRNO | reason))
    program.append(_instruction(_RETURN, _ALLOW))
    return b"".join(program)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
