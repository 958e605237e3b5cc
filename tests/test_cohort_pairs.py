"""Which pairs a cohort has: tables, folders, BIDS, and what a Python program lists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli_cases import error_of, usage_error_of

from regkit.cohort.bids import bids_pairs, describe_derivatives
from regkit.cohort.pairs import (
    COLUMNS,
    SETTINGS,
    SOLVER,
    Pair,
    listed_pairs,
    matched_folders,
    read_pairs_table,
)
from regkit.core.errors import RegkitError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with files that are there, which is all that is asked of them here."""
    for name in ("a/mr.nii.gz", "a/ct.nii", "b/mr.nii.gz", "b/ct.nii", "m.mha", "start.tfm", "w.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def _table(folder: Path, text: str) -> Path:
    path = folder / "pairs.csv"
    path.write_bytes(text.encode())
    return path


def test_a_table_is_read_by_its_columns(images: Path) -> None:
    text = (
        "\ufeffname,Fixed,moving,fixed_mask,start,settings,age\r\n"
        '"one",a/mr.nii.gz,a/ct.nii,m.mha,rigid,"preset=fast; search_range=16; ct_window=-450, 450",61\r\n'
        "\r\n"
        "two,b/mr.nii.gz,b/ct.nii,,start.tfm,weights = w.safetensors;seed=3,\r\n"
    )
    pairs, unknown = read_pairs_table(_table(images, text))
    assert unknown == ["age"]
    one, two = pairs
    assert one == Pair(
        "one",
        images / "a/mr.nii.gz",
        images / "a/ct.nii",
        fixed_mask=images / "m.mha",
        start="rigid",
        settings={"preset": "fast", "settings": {"search_range": 16}, "ct_window": (-450.0, 450.0)},
    )
    assert two.fixed_mask is None
    assert two.start == str(images / "start.tfm")
    assert two.settings == {"weights": str(images / "w.safetensors"), "seed": 3}
    assert one.place("moved") == "one/moved.nii.gz"


@pytest.mark.parametrize("separator", [";", "\t"])
def test_tables_of_other_separators(separator: str, images: Path) -> None:
    lines = [["fixed", "moving"], ["a/mr.nii.gz", "a/ct.nii"]]
    (pair,), _ = read_pairs_table(_table(images, "\n".join(separator.join(line) for line in lines)))
    assert pair.moving == images / "a/ct.nii"


def test_names_are_made_of_the_files_and_as_many_folders_as_tell_them_apart(images: Path) -> None:
    text = "fixed,moving\na/mr.nii.gz,a/ct.nii\n"
    assert read_pairs_table(_table(images, text))[0][0].name == "ct_to_mr"
    pairs, _ = read_pairs_table(_table(images, text + "b/mr.nii.gz,b/ct.nii\n"))
    assert [pair.name for pair in pairs] == ["a-ct_to_a-mr", "b-ct_to_b-mr"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("fixed,mov\na,b\n", "has no column 'moving'"),
        ("a/mr.nii.gz,a/ct.nii\n", "no column 'fixed' and no column 'moving'"),
        ("fixed,moving,fixed\na/mr.nii.gz,a/ct.nii,\n", "has the column 'fixed' twice"),
        ("fixed,moving\n\n", "lists no pairs"),
        ("fixed,moving\na/mr.nii.gz\n", "line 2 of .* names no moving image"),
        ("fixed,moving\na/mr.nii.gz,a/ct.nii,more\n", "line 2 of .* has 3 cells"),
        ("fixed,moving\na/mr.nii.gz,gone.nii\n", "a file does not exist: moving of 'gone_to_mr'"),
        ("fixed,moving\na/mr.nii.gz,a/ct.nii\na/mr.nii.gz,a/ct.nii\n", "pairs 1 and 2 would both write"),
        ("name,fixed,moving\nx,m.mha,m.mha\nX,m.mha,m.mha\n", "pairs 1 and 2 would both write 'X'"),
        ("name,fixed,moving\nx,m.mha,m.mha\n,m.mha,m.mha\n", "line 3 of .* has no name"),
        ("name,fixed,moving\n../x,m.mha,m.mha\n", "the name '../x' cannot be"),
        ("name,fixed,moving\nsummary.csv,m.mha,m.mha\n", "the name 'summary.csv' cannot be"),
        ("fixed,moving,start\nm.mha,m.mha,rigit\n", "line 2 of .* the start 'rigit' is none of"),
        ("fixed,moving,settings\nm.mha,m.mha,fast\n", "'fast' must have the form key=value"),
        ("fixed,moving,settings\nm.mha,m.mha,presets=fast\n", "no setting presets; did you mean preset"),
        ("fixed,moving,settings\nm.mha,m.mha,preset=quick\n", "no preset named quick"),
        ("fixed,moving,settings\nm.mha,m.mha,features=sift\n", "no features named 'sift'"),
        (
            "fixed,moving,settings\nm.mha,m.mha,search_range=-1\n",
            "line 2 of .* search_range must be a number",
        ),
        ("fixed,moving,settings\nm.mha,m.mha,ct_window=3\n", "'3' cannot be the setting 'ct_window'"),
        ("fixed,moving,fixed_labels\nm.mha,m.mha,m.mha\n", "fixed_labels, which need moving_labels"),
        ('fixed,moving\n"m.mha,m.mha\n', "is not a table"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(text: str, message: str, images: Path) -> None:
    with pytest.raises(RegkitError, match=message):
        read_pairs_table(_table(images, text))


def test_a_table_of_other_bytes_is_refused(images: Path) -> None:
    path = images / "pairs.csv"
    path.write_bytes("fixed,moving\nä,ö\n".encode("latin-1"))
    with pytest.raises(RegkitError, match="not UTF-8 text"):
        read_pairs_table(path)
    with pytest.raises(RegkitError, match="cannot be read: Is a directory"):
        read_pairs_table(images)


def test_pairs_of_a_program(images: Path) -> None:
    mr, ct = images / "a/mr.nii.gz", images / "a/ct.nii"
    (pair,) = listed_pairs([(mr, str(ct))])
    assert (pair.name, pair.fixed, pair.moving) == ("ct_to_mr", mr, ct)
    (pair,) = listed_pairs(
        [{"fixed": mr, "moving": ct, "name": "x", "settings": {"ct_window": [-1, 1]}, "landmarks": None}]
    )
    assert (pair.name, pair.settings) == ("x", {"ct_window": (-1.0, 1.0)})
    assert listed_pairs([pair]) == [pair]
    with pytest.raises(RegkitError, match="pair 1 is a str; give"):
        listed_pairs([str(mr)])
    with pytest.raises(RegkitError, match="no pairs"):
        listed_pairs([])
    assert not {*SETTINGS, *SOLVER} & set(COLUMNS)


def test_folders_are_matched_by_name(images: Path) -> None:
    (images / "a/ct").mkdir()
    with pytest.raises(RegkitError, match=r"'.*ct' and '.*ct.nii' have one name"):
        matched_folders(images / "a", images / "b")
    (images / "a/ct").rmdir()
    pairs = matched_folders(images / "a", images / "b")
    assert [(p.name, p.fixed.name, p.moving.parent.name) for p in pairs] == [
        ("ct", "ct.nii", "b"),
        ("mr", "mr.nii.gz", "b"),
    ]
    (images / "b/us.mha").touch()
    with pytest.raises(RegkitError, match=r"'us' of '.*b' has no partner of its name in '.*a'"):
        matched_folders(images / "a", images / "b")
    (images / "c").mkdir()
    with pytest.raises(RegkitError, match="holds no images"):
        matched_folders(images / "a", images / "c")


def test_nothing_is_begun_where_something_is_wrong(images: Path) -> None:
    out = images / "out"
    table = _table(images, "fixed,moving\nm.mha,m.mha\n")
    assert "'gone.csv' cannot be read: No such file" in error_of("batch", "gone.csv", "-o", out)
    assert "is a folder; give a second one" in error_of("batch", images, "-o", out)
    assert "there is no part 3/2" in error_of("batch", table, "-o", out, "--part", "3/2")
    assert "part 2 of 2 has no pairs" in error_of("batch", table, "-o", out, "--part", "2/2")
    assert "no output named 'warped'" in error_of("batch", table, "-o", out, "--write", "warped")
    assert "lie in each other" in error_of("batch", table, "-o", images)
    (images / "full").mkdir()
    (images / "full/file").touch()
    assert "has files that are not of a cohort" in error_of("batch", table, "-o", images / "full")
    assert "'{}' is not there".format(images / "x") in error_of("batch", table, "-o", images / "x/y")
    assert "--part" in usage_error_of("batch", table, "-o", out, "--part", "half")
    assert not out.exists()


def _bids(root: Path, *names: str) -> Path:
    root.mkdir(exist_ok=True)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    for name in names:
        subject, session = re.match(r"(sub-\w+?)_(?:(ses-\w+?)_)?", name).groups()  # type: ignore[union-attr]
        folder = root / subject / (session or "") / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return root


def test_a_bids_data_set_is_paired_by_subject_and_session(tmp_path: Path) -> None:
    pytest.importorskip("bids")
    root = _bids(
        tmp_path / "data",
        "sub-01_ses-1_T1w.nii.gz",
        "sub-01_ses-1_run-1_T2w.nii.gz",
        "sub-01_ses-2_T1w.nii.gz",
        "sub-01_ses-2_T2w.nii.gz",
        "sub-02_T1w.nii.gz",
        "sub-02_T2w.nii.gz",
    )
    pairs = {pair.name: pair for pair in bids_pairs(root, "suffix=T1w", "suffix=T2w")}
    assert set(pairs) == {
        "sub-01_ses-1_run-1_from-T2w_to-T1w",
        "sub-01_ses-2_from-T2w_to-T1w",
        "sub-02_from-T2w_to-T1w",
    }
    pair = pairs["sub-01_ses-1_run-1_from-T2w_to-T1w"]
    assert pair.fixed.name == "sub-01_ses-1_T1w.nii.gz"
    folder = "sub-01/ses-1/anat/sub-01_ses-1_run-1"
    assert pair.place("warp") == f"{folder}_from-T2w_to-T1w_mode-image_xfm.nii.gz"
    assert pair.place("inverse") == f"{folder}_from-T1w_to-T2w_mode-image_xfm.nii.gz"
    assert pair.place("moved") == f"{folder}_space-T1w_T2w.nii.gz"

    # Sessions of one kind: all onto the first.
    (later,) = bids_pairs(root, "suffix=T1w,session=1", "suffix=T1w,session=2")
    assert later.place("warp").endswith("/sub-01_ses-2_from-ses2T1w_to-ses1T1w_mode-image_xfm.nii.gz")

    with pytest.raises(RegkitError, match="no image with suffix=bold"):
        bids_pairs(root, "suffix=T1w", "suffix=bold")
    with pytest.raises(RegkitError, match="no entity 'sufix'"):
        bids_pairs(root, "sufix=T1w", "suffix=T2w")
    with pytest.raises(RegkitError, match="names no entity"):
        bids_pairs(root, "T1w", "suffix=T2w")
    with pytest.raises(RegkitError, match="has several fixed images"):
        bids_pairs(_bids(root, "sub-02_run-2_T1w.nii.gz"), "suffix=T1w", "suffix=T2w")
    with pytest.raises(RegkitError, match="cannot be read as a BIDS data set"):
        bids_pairs(tmp_path / "data/sub-01", "suffix=T1w", "suffix=T2w")


def test_derivatives_are_a_bids_data_set(tmp_path: Path) -> None:
    bids = pytest.importorskip("bids")
    describe_derivatives(tmp_path, "regkit 1")
    folder = tmp_path / "sub-01/anat"
    folder.mkdir(parents=True)
    (folder / "sub-01_from-T2w_to-T1w_mode-image_xfm.nii.gz").touch()
    layout = bids.BIDSLayout(tmp_path, validate=False, is_derivative=True)
    (file,) = layout.get(suffix="xfm")
    assert file.entities["from"] == "T2w"
