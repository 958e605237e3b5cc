"""The process that ``fuzz.py`` forks ITK's readers from: run as a script by it, and by nothing else.

    python -I -S benchmarks/fuzz_fork.py SOCKET regkit/io/itkchild.py SITE-PACKAGES

It loads ITK once. For every pair of pipes that comes over the socket it forks a process that answers one
request as ``regkit/io/itkchild.py`` does, and says its process number. When it has ended, it says its exit
code and how long both of them had a processor, and waited for one, s.
"""

import importlib.util
import os
import socket
import sys


def times(process: int | str) -> tuple[float, float]:
    """How long the first thread of a process has had a processor, and has waited for one, s; 0 off Linux."""
    try:
        with open(f"/proc/{process}/schedstat") as stream:
            worked, waited, _ = stream.read().split()
            return int(worked) / 1e9, int(waited) / 1e9
    except OSError:
        return 0.0, 0.0


def main(control: int, script: str, folder: str) -> None:
    """Serve until the socket is closed."""
    spec = importlib.util.spec_from_file_location("itkchild", script)
    assert spec and spec.loader
    child = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(child)
    child._import_sitk(folder)
    sys.argv = [script, folder]
    with socket.socket(fileno=control) as channel:
        while True:
            message, pipes, *_ = socket.recv_fds(channel, 8, 2)
            if not message:
                return
            before = times("self")
            pid = os.fork()
            if pid == 0:
                for end, pipe in enumerate(pipes):
                    os.dup2(pipe, end)
                sys.stdin = open(0)  # noqa: SIM115 - as long as the process
                os.closerange(3, 64)
                try:
                    child.main()
                finally:
                    os._exit(1)
            for pipe in pipes:
                os.close(pipe)
            channel.send(str(pid).encode())
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            worked, waited = (sum(two) - one for *two, one in zip(times(pid), times("self"), before))
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            channel.send(f"{code} {worked} {waited}".encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
