"""The process that ``fuzz.py`` forks ITK's readers from: run as a script by it, and by nothing else.

    python -I -S benchmarks/fuzz_fork.py SOCKET regkit/io/itkchild.py SITE-PACKAGES

It loads ITK once. For every pair of pipes that comes over the socket it forks a process that answers one
request as ``regkit/io/itkchild.py`` does, says its process number, and its exit code when it has ended.
"""

import importlib.util
import os
import socket
import sys


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
            channel.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
