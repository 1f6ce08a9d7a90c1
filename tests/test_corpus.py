"""The corpus: what is read, what is left out, and what is held out."""

import pytest

from minidsv4.train.corpus import python_source


def write_files(folder, texts):
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def many_files(folder, n=60):
    return write_files(folder, {f"module_{i:02}.py": f"x = {i}\n" for i in range(n)})


@pytest.fixture(scope="module")
def library():
    return python_source()


def test_the_standard_library_is_large_and_a_few_percent_of_its_files_are_held_out(library):
    assert len(library.train) > 300 and library.n_bytes() > 5_000_000
    assert 0.02 < len(library.held_out) / len(library.train) < 0.1
    assert library.n_bytes() == sum(len(file.text.encode()) for part in library for file in part)


def test_no_text_is_in_both_parts_or_twice_in_one(library):
    texts = [file.text for part in library for file in part]
    assert len(set(texts)) == len(texts)


def test_tests_and_installed_packages_are_left_out(library):
    folders = {folder for part in library for file in part for folder in file.name.split("/")[:-1]}
    assert not folders & {"test", "tests", "site-packages", "encodings"} and "json" in folders


def test_the_corpus_comes_in_the_order_of_its_paths_and_each_file_with_its_own_text(tmp_path):
    corpus = python_source(many_files(tmp_path))
    for part in corpus:
        assert [file.name for file in part] == sorted(file.name for file in part)
        assert all((tmp_path / file.name).read_text() == file.text for file in part)
    assert len(corpus.train) + len(corpus.held_out) == 60


def test_whether_a_file_is_held_out_depends_on_its_text_alone(tmp_path):
    before = python_source(many_files(tmp_path / "a"))
    held = {file.text for file in before.held_out}
    moved = write_files(tmp_path / "b", {f"other/{i}.py": f"x = {i}\n" for i in range(59, -1, -1)})
    write_files(moved, {"more/1.py": "y = 1\n", "more/2.py": "y = 2\n"})
    after = python_source(moved)
    assert {file.text for file in after.held_out} - {"y = 1\n", "y = 2\n"} == held


def test_copies_empty_files_other_encodings_and_other_kinds_of_file_are_left_out(tmp_path):
    many_files(tmp_path)
    extra = {"z_copy.py": "x = 1\n", "z_empty.py": "", "z_latin.py": "# \xe9\n".encode("latin-1"), "z.txt": "text"}
    write_files(tmp_path, extra | {"tests/t.py": "t = 1\n", "test/t.py": "t = 2\n"})
    assert all(not file.name.startswith(("z", "test")) for part in python_source(tmp_path) for file in part)


def test_a_folder_with_too_little_source_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="0 Python files below 'empty' are too few"):
        python_source(tmp_path / "empty")
