"""The process in which ITK parses files: run as a script by :mod:`regkit.io.guard`, and by nothing else.

ITK's parsers of headers crash on some damaged bytes and never return on others; here that costs this process
alone. It has to start fast, so it imports SimpleITK without what needs numpy, and nothing of regkit.

One request comes on stdin, a line of JSON; the answer goes to stdout, a line of JSON and then raw bytes:

* ``image``: ``files`` and the ``output`` type or null. The answer is the header; after a line with the number
  of bytes of memory to allow, the voxels follow.
* ``transform``: ``files`` of one. The answer lists the parts of the transform, composites taken apart; the
  parameters of each follow as float64.

A failure that ITK reports is an answer with ``error``.
"""

import importlib
import json
import os
import sys
import types
from typing import Any

_HEADER_BYTES = 1 << 29  # memory to parse a header in, beyond what the libraries take
# As regkit.runtime.process, which is not imported here, has it.
_TRICKS = os.environ.get("REGKIT_TRICKS", "all")
_QUICK = _TRICKS == "all" or "parser" in _TRICKS.split(",")


def _import_sitk(folder: str) -> Any:
    if not _QUICK:
        sys.path.insert(0, folder)
        return importlib.import_module("SimpleITK.SimpleITK")
    package = types.ModuleType("SimpleITK")
    package.__path__ = [os.path.join(folder, "SimpleITK")]
    sys.modules["SimpleITK"] = package
    try:
        return importlib.import_module("SimpleITK.SimpleITK")
    except ImportError:  # of another layout than that of the versions known
        del sys.modules["SimpleITK"]
        sys.path.insert(0, folder)
        return importlib.import_module("SimpleITK")


def _allow(more: int) -> None:
    """Let this process take so many bytes more than it has, and no more."""
    try:
        import resource

        with open("/proc/self/statm") as stream:
            now = int(stream.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = now + more if hard == resource.RLIM_INFINITY else min(now + more, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ImportError, OSError, ValueError):  # no such limits on this system
        pass


def _buffer(sitk: Any, image: Any) -> memoryview:
    return memoryview(sitk._GetMemoryViewFromImage(image)).cast("B")


def _image(sitk: Any, request: dict[str, Any], out: Any) -> None:
    files = request["files"]
    header = sitk.ImageFileReader()
    header.SetFileName(files[0])
    header.ReadImageInformation()
    facts = {
        "size": header.GetSize(),
        "spacing": header.GetSpacing(),
        "origin": header.GetOrigin(),
        "direction": header.GetDirection(),
        "pixel": sitk.GetPixelIDValueAsString(header.GetPixelID()),
        "components": header.GetNumberOfComponents(),
        "format": header.GetImageIO() or _format(sitk, files[0]),
    }
    _say(out, facts)
    line = sys.stdin.readline()
    if not line.strip():
        return
    _allow(int(line))
    if len(files) > 1:
        series = sitk.ImageSeriesReader()
        series.SetFileNames(files)
        # Each slice has its own slope and intercept; the type of the first may not hold the others.
        series.SetOutputPixelType(sitk.sitkFloat32)
        image = series.Execute()
    else:
        image = header.Execute()
    _say(
        out,
        {
            "size": image.GetSize(),
            "spacing": image.GetSpacing(),
            "origin": image.GetOrigin(),
            "direction": image.GetDirection(),
            "pixel": image.GetPixelIDTypeAsString(),
            "components": image.GetNumberOfComponentsPerPixel(),
        },
    )
    out.write(_buffer(sitk, image))


def _format(sitk: Any, file: str) -> str:
    return str(sitk.ImageFileReader.GetImageIOFromFileName(file))


def _transform(sitk: Any, request: dict[str, Any], out: Any) -> None:
    transform = sitk.ReadTransform(request["files"][0])
    parts, values = [], []
    for part in _parts(sitk, transform):
        facts = {
            "name": part.GetName(),
            "dimension": part.GetDimension(),
            "linear": part.IsLinear(),
            "fixed": part.GetFixedParameters(),
        }
        if part.GetDimension() == 3 and part.IsLinear():
            # Where four points go needs no case per type of transform; 1000 mm keep rounding out of it.
            ends = [(0.0, 0.0, 0.0), (1000.0, 0.0, 0.0), (0.0, 1000.0, 0.0), (0.0, 0.0, 1000.0)]
            facts["points"] = [part.TransformPoint(end) for end in ends]
            facts["bytes"] = 0
        elif part.GetName() == "DisplacementFieldTransform" and part.GetDimension() == 3:
            field = part.GetDisplacementField()
            values.append(_buffer(sitk, field))
            facts["bytes"] = len(values[-1])
        elif part.GetName() == "BSplineTransform" and part.GetDimension() == 3:
            import array

            values.append(memoryview(array.array("d", part.GetParameters())).cast("B"))
            facts["bytes"] = len(values[-1])
            facts["order"] = part.GetOrder()
        else:
            facts["bytes"] = 0
        parts.append(facts)
    _say(out, {"parts": parts})
    if sys.stdin.readline().strip():
        for value in values:
            out.write(value)


def _parts(sitk: Any, transform: Any) -> list[Any]:
    transform = transform.Downcast()
    if transform.GetName() != "CompositeTransform":
        return [transform]
    return [transform.GetNthTransform(n).Downcast() for n in range(transform.GetNumberOfTransforms())]


def _say(out: Any, facts: dict[str, Any]) -> None:
    out.write(json.dumps(facts).encode() + b"\n")
    out.flush()


def main() -> None:
    """Answer one request."""
    # What C libraries print must not get into the answer, nor onto the user's screen.
    out = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sitk = _import_sitk(sys.argv[1])
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    request = json.loads(sys.stdin.readline())
    # A transform comes whole; what it may take is bounded by what its file can hold.
    _allow(_HEADER_BYTES + int(request.get("bytes", 0)))
    answers = {"image": _image, "transform": _transform}
    try:
        answers[request["do"]](sitk, request, out)
    except Exception as error:
        no_memory = isinstance(error, MemoryError) or "bad_alloc" in str(error)
        _say(out, {"error": "it asks for more memory than it may take" if no_memory else str(error)})
    out.flush()
    if _QUICK:
        os._exit(0)  # ITK has nothing left to do, and cleaning up costs time


if __name__ == "__main__":
    main()
