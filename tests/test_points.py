"""Landmark files: every format gives the same LPS points, and a bad one says where it is bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regkit.core.errors import RegkitError
from regkit.io.points import POINT_SUFFIXES, open_points, read_pairs, read_points, write_points

# What Slicer shows for one list of points; the files below are as its versions write them.
LPS = np.array([[-19.9067, 13.9347, 29.4430], [-7.3939, -76.9499, 17.5526], [81.7323, -42.9415, 9.5856]])
RAS = LPS * [-1, -1, 1]

FCSV_COLUMNS = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"


def fcsv(points: np.ndarray, system: str | None, columns: str = FCSV_COLUMNS) -> str:
    rows = [f"MarkupsFiducialNode_{i},{x},{y},{z},0,0,0,1,1,1,0,F,," for i, (x, y, z) in enumerate(points)]
    stated = f"# CoordinateSystem = {system}\n" if system else ""
    return "# Markups fiducial file version = 4.11\n" + stated + columns + "\n".join(rows) + "\n"


def mrk(points: np.ndarray, **fields: Any) -> str:
    control = [{"id": "1", "label": "F", "position": list(p), "positionStatus": "defined"} for p in points]
    return json.dumps({"markups": [{"type": "Fiducial", "controlPoints": control, **fields}]})


def table(points: np.ndarray, header: str = "", row: str = "{},{},{}") -> str:
    return header + "".join(row.format(*p) + "\n" for p in points)


GOOD: dict[str, tuple[str, str]] = {
    "csv": ("p.csv", table(LPS, "x,y,z\n")),
    "csv capitals and a name": ("p.csv", table(LPS, "name, X, Y, Z\n", '"a, b", {}, {}, {}')),
    "csv other order": ("p.csv", table(LPS[:, ::-1], "z,y,x\n")),
    "csv of ANTs": ("p.csv", table(LPS, "x,y,z,t,label,comment\n", "{},{},{},0,1,")),
    "csv bare": ("p.csv", table(LPS)),
    "csv comment and blank lines": ("p.csv", "# mm\n\n" + table(LPS, "x,y,z\n") + "\n"),
    "csv byte order mark": ("p.csv", "\ufeff" + table(LPS, "x,y,z\n")),
    "csv windows": ("p.csv", table(LPS, "x,y,z\n").replace("\n", "\r\n")),
    "fcsv LPS": ("p.fcsv", fcsv(LPS, "LPS")),
    "fcsv 1": ("p.fcsv", fcsv(LPS, "1")),
    "fcsv RAS": ("p.fcsv", fcsv(RAS, "RAS")),
    "fcsv 0": ("p.fcsv", fcsv(RAS, "0")),
    "fcsv without columns": ("p.fcsv", fcsv(RAS, "0", columns="")),
    "json LPS": ("p.mrk.json", mrk(LPS, coordinateSystem="LPS", coordinateUnits="mm")),
    "json RAS": ("p.mrk.json", mrk(RAS, coordinateSystem="RAS")),
    "json default": ("p.mrk.json", mrk(LPS)),
    "json DICOM units": ("p.json", mrk(LPS, coordinateUnits=["mm", "UCUM", "millimeter"])),
}


@pytest.mark.parametrize("case", GOOD)
def test_every_format_gives_the_same_points(case: str, tmp_path: Path) -> None:
    name, text = GOOD[case]
    path = tmp_path / name
    path.write_bytes(text.encode())
    points = read_points(path)
    assert points.dtype == np.float64
    np.testing.assert_allclose(points, LPS, atol=1e-12)


@pytest.mark.parametrize("suffix", POINT_SUFFIXES)
@pytest.mark.parametrize("count", [1, 5])
def test_written_points_come_back(suffix: str, count: int, rng: np.random.Generator, tmp_path: Path) -> None:
    path = tmp_path / f"points{suffix}"
    points = rng.uniform(-500, 500, (count, 3))
    write_points(path, points)
    np.testing.assert_allclose(read_points(path), points, atol=0.6e-4)
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_list_says_what_slicer_asks_for(tmp_path: Path) -> None:
    write_points(tmp_path / "p.mrk.json", LPS)
    (markups,) = json.loads((tmp_path / "p.mrk.json").read_text())["markups"]
    assert (markups["type"], markups["coordinateSystem"]) == ("Fiducial", "LPS")
    assert [p["position"] for p in markups["controlPoints"]] == LPS.tolist()
    assert {p["positionStatus"] for p in markups["controlPoints"]} == {"defined"}
    write_points(tmp_path / "p.fcsv", LPS)
    lines = (tmp_path / "p.fcsv").read_text().splitlines()
    assert lines[1] == "# CoordinateSystem = LPS"
    assert all(line.count(",") == FCSV_COLUMNS.count(",") for line in lines[2:])


def test_pairs_are_read_by_column(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("name,mx,my,mz,fx,fy,fz\np01,4,5,6,1,2,3\np02,10,11,12,7,8,9\n")
    fixed, moving = read_pairs(path)
    np.testing.assert_array_equal(fixed, [[1, 2, 3], [7, 8, 9]])
    np.testing.assert_array_equal(moving, [[4, 5, 6], [10, 11, 12]])
    path.write_text("1,2,3,4,5,6\n")
    np.testing.assert_array_equal(read_pairs(path), [[[1, 2, 3]], [[4, 5, 6]]])


def test_real_landmarks_are_read(shared_dir: Path) -> None:
    path = shared_dir / "data" / "pairs" / "lung-ct-ct" / "landmarks.csv"
    fixed, moving = read_pairs(path)
    assert len(fixed) == len(moving) == len(path.read_text().splitlines()) - 1
    np.testing.assert_array_equal(fixed[0], [-25.4230, -24.6800, -1149.5])
    np.testing.assert_array_equal(moving[0], [-30.6950, -31.3130, -1107.0])


BAD: dict[str, tuple[str, str | bytes | None, str]] = {
    "missing": ("p.csv", None, "do not exist"),
    "other kind": ("p.vtk", "1,2,3", r"must end in \.csv or \.fcsv or \.mrk\.json"),
    "binary": ("p.csv", b"\xff\xfe\x00\x81", "are not a text file"),
    "empty": ("p.csv", "", "are empty"),
    "header only": ("p.csv", "x,y,z\n", "empty below their header"),
    "column missing": ("p.csv", "x,y,label\n1,2,a\n", "have no column z among x, y, label"),
    "pairs instead": ("p.csv", "fx,fy,fz,mx,my,mz\n1,2,3,4,5,6\n", "have no column x, y, z among fx"),
    "two bare columns": ("p.csv", "1,2\n3,4\n", "have 2 columns and no header; give the 3 columns x,y,z"),
    "no number": ("p.csv", "# mm\nx,y,z\n1,2,3\n4,five,6\n", "line 4: 'five' for y is not a finite number"),
    "not finite": ("p.csv", "x,y,z\n1,2,nan\n", "line 2: 'nan' for z is not a finite number"),
    "short row": ("p.csv", "1,2,3\n4,5\n", "line 2: nothing for z is not a finite number"),
    "fcsv without system": ("p.fcsv", fcsv(LPS, None), "state no system; add a line '# Coord"),
    "fcsv of voxels": ("p.fcsv", fcsv(LPS, "2"), "are in the system '2'; only LPS and RAS"),
    "fcsv empty": ("p.fcsv", fcsv(LPS[:0], "LPS"), "are empty"),
    "json broken": ("p.mrk.json", '{"markups": [', "are not valid JSON"),
    "json other": ("p.json", '{"FixedImageDimension": 3}', "are not a point list of 3D Slicer"),
    "json two lists": ("p.mrk.json", '{"markups": [{}, {}]}', "point list of 3D Slicer with one entry"),
    "json empty": ("p.mrk.json", mrk(LPS[:0]), "are empty"),
    "json units": ("p.mrk.json", mrk(LPS, coordinateUnits="um"), "are not in mm but in um"),
    "json system": ("p.mrk.json", mrk(LPS, coordinateSystem="IJK"), "are in the system 'IJK'"),
    "json short": ("p.mrk.json", mrk(LPS[:, :2]), "control point 1 has no defined position"),
    "json unset": ("p.mrk.json", mrk(LPS).replace("defined", "undefined"), "control point 1 has no defined"),
    "json no position": ("p.mrk.json", mrk(LPS, controlPoints=[{"id": "1"}]), "control point 1 has no"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_used_is_refused_by_name(case: str, tmp_path: Path) -> None:
    name, content, message = BAD[case]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RegkitError, match=message) as caught:
        read_points(path)
    assert str(caught.value).startswith(f"points '{path}'")
    assert "\n" not in str(caught.value)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").mkdir()
    with pytest.raises(RegkitError, match="cannot be read: Is a directory"):
        read_points(tmp_path / "p.csv")


def test_pairs_without_their_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("x,y,z\n1,2,3\n")
    with pytest.raises(RegkitError, match="have no column fx, fy, fz, mx, my, mz among x, y, z"):
        read_pairs(tmp_path / "p.csv")


def test_writing_refuses_what_makes_no_list(tmp_path: Path) -> None:
    with pytest.raises(RegkitError, match=r"must have the shape \(n, 3\), got \(3, 2\)"):
        write_points(tmp_path / "p.csv", np.zeros((3, 2)))
    with pytest.raises(RegkitError, match=r"must end in \.csv"):
        write_points(tmp_path / "p.txt", LPS)
    assert not list(tmp_path.iterdir())


def test_tables_of_slicer_name_their_system(tmp_path: Path) -> None:
    path = tmp_path / "slicer.csv"
    path.write_text("label,r,a,s,defined,selected\nF-1,-5,-6,7,1,1\nF-2,1,2,3,1,1\n")
    np.testing.assert_array_equal(read_points(path), [[5, 6, 7], [-1, -2, 3]])
    path.write_text("label,l,p,s\nF-1,5,6,7\n")
    np.testing.assert_array_equal(read_points(path), [[5, 6, 7]])
    path.write_text("label,r,a,s,defined\nF-1,-5,-6,7,1\nF-2,0,0,0,0\n")
    with pytest.raises(RegkitError, match="point 2 has no defined position"):
        read_points(path)


@pytest.mark.parametrize(
    "text",
    ["x;y;z\n5,0;6,25;-7,5\n", "5,0;6,25;-7,5\n", "x\ty\tz\n5\t6.25\t-7.5\n", "name;z;y;x\na;-7.5;6.25;5\n"],
)
def test_semicolons_tabs_and_decimal_commas(text: str, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(text)
    np.testing.assert_array_equal(read_points(tmp_path / "points.csv"), [[5, 6.25, -7.5]])


# ---- files whose points are moved

SHIFT = np.array([1.5, -2.25, 10.0])


def moved(path: Path, out: Path) -> str:
    file = open_points(path)
    file.save(out, file.points + SHIFT)
    return out.read_bytes().decode()


def test_a_moved_list_of_slicer_keeps_all_but_its_positions(tmp_path: Path) -> None:
    def point(number: int, x: float, **more: Any) -> dict[str, Any]:
        fixed = {"id": str(number), "label": f"P é {number}", "description": "d", "locked": True}
        return fixed | {"position": [x, 2.0, 3.0], "positionStatus": "defined"} | more

    curve = {
        "type": "ClosedCurve", "coordinateSystem": "RAS", "coordinateUnits": "mm",
        "controlPoints": [point(7, 1.0), point(2, 5.0, positionStatus="undefined"), point(3, 9.0)],
        "measurements": [{"name": "length", "enabled": True, "value": 12.5}],
        "display": {"color": [0.4, 1.0, 0.0]},
    }  # fmt: skip
    other = {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": [point(1, 4.0)]}
    content = {"@schema": "s", "markups": [curve, other], "mine": {"a": [1, 2]}}
    (tmp_path / "a.mrk.json").write_text(json.dumps(content), encoding="utf-8")
    result = json.loads(moved(tmp_path / "a.mrk.json", tmp_path / "b.mrk.json"))
    wanted = json.loads(json.dumps(content))
    first, last = (wanted["markups"][0]["controlPoints"][k] for k in (0, 2))
    first["position"], last["position"] = [-0.5, 4.25, 13.0], [7.5, 4.25, 13.0]  # RAS
    wanted["markups"][1]["controlPoints"][0]["position"] = [5.5, -0.25, 13.0]
    del wanted["markups"][0]["measurements"][0]["value"]
    assert result == wanted
    assert list(result["markups"][0]) == list(curve)


TABLES = {
    "fcsv": (
        "p.fcsv",
        "# Markups\n# CoordinateSystem = RAS\n"
        + FCSV_COLUMNS
        + 'id_1,1,2,3,0,0,0,1,1,0,1,"a, b",d,node\nid_2,4,5,6\n',
        "# Markups\n# CoordinateSystem = RAS\n"
        + FCSV_COLUMNS
        + 'id_1,-0.5000,4.2500,13.0000,0,0,0,1,1,0,1,"a, b",d,node\nid_2,2.5000,7.2500,16.0000\n',
    ),
    "csv": (
        "p.csv",
        '# mm\r\nname, Z,y,x,more\r\n"a, ""b""",3,2,1,7\r\n\r\nc,6,5,4,\r\n',
        '# mm\r\nname, Z,y,x,more\r\n"a, ""b""",13.0000,-0.2500,2.5000,7\r\n\r\nc,16.0000,2.7500,5.5000,\r\n',
    ),
    "bare": ("p.csv", "1,2,3\n4,5,6", "2.5000,-0.2500,13.0000\n5.5000,2.7500,16.0000"),
    "decimal commas": ("p.csv", "x;y;z;n\n1,5;2;3,0;a\n", "x;y;z;n\n3,0000;-0.2500;13,0000;a\n"),
    "slicer": (
        "p.csv",
        "label,r,a,s,defined,selected\nF-1,1,2,3,1,1\nF-2,0,0,0,0,1\n",
        "label,r,a,s,defined,selected\nF-1,-0.5000,4.2500,13.0000,1,1\nF-2,0,0,0,0,1\n",
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_moved_table_keeps_all_but_its_positions(case: str, tmp_path: Path) -> None:
    name, text, wanted = TABLES[case]
    (tmp_path / name).write_bytes(text.encode())
    assert moved(tmp_path / name, tmp_path / f"out{Path(name).suffix}") == wanted


@pytest.mark.parametrize("suffix", POINT_SUFFIXES)
def test_another_format_keeps_the_labels(suffix: str, tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text('label,x,y,z\n"nose, tip",1,2,3\near,4,5,6\n')
    moved(source, tmp_path / f"out{suffix}")
    again = open_points(tmp_path / f"out{suffix}")
    assert again.labels == ("nose, tip", "ear")
    np.testing.assert_allclose(again.points, [[2.5, -0.25, 13], [5.5, 2.75, 16]])


@pytest.mark.parametrize("kind", ["ROI", "Plane"])
def test_what_is_no_list_of_points_is_not_moved(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.mrk.json").write_text(mrk(LPS, type=kind))
    with pytest.raises(RegkitError, match=f"hold a {kind} of 3D Slicer's, which no warp keeps flat"):
        open_points(tmp_path / "a.mrk.json")
