"""What bubblewrap is told to show a container."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trireme_local.node.rootfs import ContainerRoot, Mount, interpreter_trees, visible_trees

ARGUMENTS = {"--dir": 1, "--remount-ro": 1, "--chdir": 1, "--tmpfs": 1, "--size": 1, "--perms": 1}
MODIFIERS = ("--size", "--perms", "--chdir")


def steps_of(root: ContainerRoot) -> list[tuple[str, str, str]]:
    """(operation, source or "", destination) of each step, in order."""
    words, found = iter(root.options()), []
    for word in words:
        values = [next(words) for _ in range(ARGUMENTS.get(word, 2))]
        if word not in MODIFIERS:
            found.append((word, values[0] if len(values) == 2 else "", values[-1]))
    return found


def below(path: Path, root: ContainerRoot) -> list[tuple[str, str, str]]:
    """The steps at `path` or below, but for the directory that the container starts in."""
    return [step for step in steps_of(root)[:-1] if Path(step[2]).is_relative_to(path)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of the host: a/file, a/folder/, a/link, b."""
    tree = tmp_path / "tree"
    (tree / "a" / "folder").mkdir(parents=True)
    (tree / "a" / "file").touch()
    (tree / "a" / "link").symlink_to("../b")
    (tree / "b").touch()
    return tree


def volume(tmp_path: Path) -> Path:
    directory = tmp_path / "volume"
    directory.mkdir()
    return directory


def test_a_tree_without_mounts_is_bound_whole_and_read_only(tmp_path: Path, tree: Path) -> None:
    assert below(tree, ContainerRoot(tmp_path / "root", (tree,))) == [("--ro-bind", str(tree), str(tree))]


def test_only_the_way_to_a_missing_mount_point_is_taken_apart(tmp_path: Path, tree: Path) -> None:
    host = volume(tmp_path)
    root = ContainerRoot(tmp_path / "root", (tree,), (Mount(f"{tree}/a/new/deep", host),))
    assert below(tree, root) == [
        ("--dir", "", str(tree)),
        ("--dir", "", f"{tree}/a"),
        ("--ro-bind", f"{tree}/a/file", f"{tree}/a/file"),
        ("--ro-bind", f"{tree}/a/folder", f"{tree}/a/folder"),
        ("--symlink", "../b", f"{tree}/a/link"),
        ("--bind", str(host), f"{tree}/a/new/deep"),
        ("--ro-bind", f"{tree}/b", f"{tree}/b"),
    ]


def test_a_mount_over_what_exists_leaves_its_tree_whole(tmp_path: Path, tree: Path) -> None:
    host = volume(tmp_path)
    root = ContainerRoot(tmp_path / "root", (tree,), (Mount(f"{tree}/a/folder/", host, read_only=True),))
    assert below(tree, root) == [
        ("--ro-bind", str(tree), str(tree)),
        ("--ro-bind", str(host), f"{tree}/a/folder"),
    ]


def test_a_mount_hides_all_that_the_host_has_there(tmp_path: Path, tree: Path) -> None:
    host = volume(tmp_path)
    mounts = (Mount(f"{tree}/a", host), Mount(f"{tree}/a/new", host))
    assert below(tree, ContainerRoot(tmp_path / "root", (tree,), mounts)) == [
        ("--ro-bind", str(tree), str(tree)),
        ("--bind", str(host), f"{tree}/a"),
        ("--bind", str(host), f"{tree}/a/new"),
    ]
    whole = (Mount(str(tree), host),)
    assert below(tree, ContainerRoot(tmp_path / "root", (tree,), whole)) == [("--bind", str(host), str(tree))]


def test_a_mount_through_a_link_goes_where_the_link_leads(tmp_path: Path, tree: Path) -> None:
    (tree / "way").symlink_to("a")
    host = volume(tmp_path)
    root = ContainerRoot(tmp_path / "root", (tree,), (Mount(f"{tree}/way/folder", host),))
    assert ("--bind", str(host), f"{tree}/a/folder") in steps_of(root)


def test_programs_are_seen_inside_a_volume_that_is_mounted_over_their_parent(tmp_path: Path, tree: Path) -> None:
    host = volume(tmp_path)
    root = ContainerRoot(tmp_path / "root", (tree,), (Mount(str(tree.parent), host, read_only=True),))
    assert below(tree.parent, root) == [
        ("--ro-bind", str(host), str(tree.parent)),
        ("--ro-bind", str(tree), str(tree)),
    ]
    root.make()
    assert (host / "tree").is_dir(), "in a read-only volume bwrap could not make the mount point"


def test_a_read_only_root_is_made_so_after_everything_else(tmp_path: Path) -> None:
    assert steps_of(ContainerRoot(tmp_path, (), read_only=True))[-1] == ("--remount-ro", "", "/")
    assert all(operation != "--remount-ro" for operation, _, _ in steps_of(ContainerRoot(tmp_path, ())))


def test_shared_memory_is_small_unless_a_volume_is_mounted_there(tmp_path: Path) -> None:
    options = ContainerRoot(tmp_path, ()).options()
    where = options.index("--tmpfs")
    assert options[where - 4 : where + 2] == ["--size", str(64 << 20), "--perms", "1777", "--tmpfs", "/dev/shm"]
    mounted = ContainerRoot(tmp_path, (), (Mount("/dev/shm", tmp_path),)).options()
    assert "--tmpfs" not in mounted
    assert ["--bind", str(tmp_path), "/dev/shm"] == mounted[mounted.index("/dev/shm") - 2 :][:3]


def test_a_device_of_the_host_can_be_opened_and_a_read_only_volume_not_written(tmp_path: Path) -> None:
    mounts = (
        Mount("/dev/infiniband", Path("/dev/infiniband"), read_only=True),
        Mount("/keys", tmp_path, read_only=True),
        Mount("/dev/shm", Path("/dev/shm/volume")),
    )
    steps = {destination: operation for operation, _, destination in steps_of(ContainerRoot(tmp_path, (), mounts))}
    found = [steps[mount.path] for mount in mounts]
    assert found == ["--dev-bind", "--ro-bind", "--bind"]


def test_every_start_finds_a_fresh_root(tmp_path: Path) -> None:
    root = ContainerRoot(tmp_path / "root", ())
    root.make()
    (tmp_path / "root" / "tmp" / "left").touch()
    root.make()
    assert list((tmp_path / "root" / "tmp").iterdir()) == []
    assert (tmp_path / "root" / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_what_a_container_sees_of_this_computer(tmp_path: Path, tree: Path) -> None:
    trees = visible_trees([tree / "a", tree, tmp_path / "missing", Path("/usr/lib"), Path("/")])
    assert tree in trees
    assert Path("/usr") in trees
    assert not {tree / "a", tmp_path / "missing", Path("/usr/lib"), Path("/"), Path("/tmp"), Path("/var")} & set(trees)
    import trireme_local

    sources = Path(next(iter(trireme_local.__path__)))
    assert any(sources.is_relative_to(tree) for tree in interpreter_trees())


names = st.sampled_from(["a", "b", "etc", "tmp", "x"])
paths = st.lists(names, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


@given(st.lists(paths, max_size=6), paths)
def test_every_directory_comes_before_what_lies_in_it(mounted: list[str], directory: str) -> None:
    mounts = tuple(Mount(path, Path("/usr")) for path in mounted)
    steps = [destination for _, _, destination in steps_of(ContainerRoot(Path("/r"), (), mounts, directory))]
    for index, destination in enumerate(steps[:-1]):
        later = set(steps[index + 1 : -1])
        assert not later & {str(parent) for parent in PurePosixPath(destination).parents}
