"""The rows of the table: what is measured, against whom, which bar it is held to, and whether the results are right."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import disks
from disks import CLUSTER, tool
from measure import Contender, Lines, NotHere, Verdict, WrongResult, at_most, faster, remove
from setting import Bench

import blkhash
from harness import G, M, T, Argument, nbdkit
from guest import Guest

LIMIT = 64 * M  # of memory
DELAY = ("rdelay=10ms", "delay-extents=10ms")

Row = Callable[[Bench], Iterator[Verdict]]
ROWS: dict[str, tuple[str, Row]] = {}


def row(name: str, title: str) -> Callable[[Row], Row]:
    def add(function: Row) -> Row:
        ROWS[name] = title, function
        return function
    return add


def needs(program: str) -> None:
    if not shutil.which(program):
        raise NotHere(f"{program} is not installed")


def convert(name: str, *argv: Argument, output: Path, check: Callable[[Path], None] | None = None) -> Contender:
    return Contender(name, ["qemu-img", "convert", *argv, output], [output], check)


# -- pulls --------------------------------------------------------------------------------------------------------------

@row("pull", "Full pull to qcow2, with a SHA-256 manifest, durable; qemu-img does not fsync")
def _pull(b: Bench) -> Iterator[Verdict]:
    out = b / "out"
    with b.serve_source() as server:
        result = b.race(
            b.contender("qchain pull", "pull", server.uri, "-o", out, output="out", check=b.holds(out, "qcow2", b.source)),
            Contender("nbdcopy --flush", ["nbdcopy", "--flush", server.uri, b / "raw"], [b / "raw"],
                      b.holds(b / "raw", "raw", b.source)),
            convert("convert -m 16 -W", "-m", 16, "-W", "-f", "raw", "-O", "qcow2", server.uri, output=b / "converted",
                    check=b.holds(b / "converted", "qcow2", b.source)),
            convert("convert", "-f", "raw", "-O", "qcow2", server.uri, output=b / "plain"))
    yield at_most(result, "qchain pull", "nbdcopy --flush", 0.8)
    yield faster(result, "qchain pull", "convert -m 16 -W", 2.5)
    yield faster(result, "qchain pull", "convert", None)


@row("compress", "Full pull, compressed with zstd")
def _compress(b: Bench) -> Iterator[Verdict]:
    sizes: dict[str, int] = {}
    ours, theirs = b / "out", b / "converted"

    def weigh(output: Path) -> Callable[[Path], None]:
        def check(said: Path) -> None:
            b.holds(output, "qcow2", b.source)(said)
            sizes[output.name] = output.stat().st_size
        return check

    with b.serve_source() as server:
        result = b.race(
            b.contender("qchain pull --compress zstd", "pull", server.uri, "-o", ours, "--compress", "zstd", output="out",
                        check=weigh(ours)),
            convert("convert -c -m 16 -W", "-c", "-m", 16, "-W", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd",
                    server.uri, output=theirs, check=weigh(theirs)))
    yield faster(result, "qchain pull --compress zstd", "convert -c -m 16 -W", 2)
    ratio = sizes["out"] / sizes["converted"]
    yield Verdict(f"size of the file: {ratio:.3f}x that of qemu-img ({sizes['out'] / M:.0f} MiB)", "<= 1.02x", ratio <= 1.02)


@row("increment", "Increment of scattered clusters of 64 KiB against a process for each fragment")
def _increment(b: Bench) -> Iterator[Verdict]:
    full, out, looped = b.full, b / "out", b / "looped"
    part = b.changes[:b.size(100, 10)]
    list_of_part = b / "fragments"
    list_of_part.write_text("".join(f"{run.start * CLUSTER} {len(run) * CLUSTER}\n" for run in part))
    loop = f'while read -r start length; do qemu-io -C -c "r $start $length" -f qcow2 {looped}; done <{list_of_part}'

    def check_loop(_: Path) -> None:
        (b / "map").write_text(tool("qemu-img", "map", "--output=json", "-f", "qcow2", looped))
        if [(run.start * CLUSTER, len(run) * CLUSTER) for run in part] != disks.data_by_qemu(b / "map"):
            raise WrongResult("the loop did not copy its part")

    with b.serve_changed() as server:
        def create() -> None:
            tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", server.uri, "-F", "raw", looped)

        result = b.race(
            b.contender("qchain pull --parent", "pull", server.uri, "-o", out, "--parent", full, output="out",
                        check=b.holds(out, "qcow2", b.changed)),
            Contender("the loop", ["bash", "-c", loop], [looped], check_loop, before=create,
                      scale=len(part) / len(b.changes)))
    clusters = sum(map(len, b.changes))
    yield Verdict(f"{clusters} clusters in {len(b.changes)} fragments; the loop: {len(part)} of them, without its qemu-img map")
    yield faster(result, "qchain pull --parent", "the loop", 100)


@row("increment-guest", "The same increment of a libvirt guest: qchain against the data phase of virtnbdbackup")
def _increment_guest(b: Bench) -> Iterator[Verdict]:
    needs("virtnbdbackup")
    size = b.size(2 * G, 64 * M)
    changes = disks.scattered(size, b.size(10_000, 240), b.size(8_503, 200))
    place, backups, full, out = b / "guest-folder", b / "backups", b / "full-guest.qcow2", b / "out"
    with Guest.start(place, size) as guest:
        scratch = place / "guest"
        job, socket = scratch / "job.xml", scratch / "run" / "bench.sock"

        def virtnbdbackup(level: str, output: Path) -> Sequence[Argument]:
            return guest.beside("virtnbdbackup", "-U", "qemu:///session", "-d", guest.domain, "-i", "vdb", "-n", "-S", scratch,
                                "-f", socket, "-l", level, "-o", output)

        def begin(since: str) -> None:
            job.write_text(_job(since, socket, scratch / "vdb.scratch"))
            guest.virsh("backup-begin", job)

        uri = f"nbd+unix:///vdb?socket={socket.resolve()}"
        tool(*virtnbdbackup("full", backups))
        begin("")
        tool(b.qchain, "pull", uri, "-o", full)
        guest.end()
        guest.io_many("vdb", disks.writes(changes))

        def check(said: Path) -> None:
            guest.reference("vdb", b / "reference")
            b.holds(out, "qcow2", b / "reference", "raw")(said)
            (b / "reference").unlink()

        def whole(_: Path) -> None:
            (written,) = backups.glob("vdb.diff.*.data")
            if written.stat().st_size < sum(map(len, changes)) * CLUSTER:
                raise WrongResult("virtnbdbackup did not copy all")

        def forget() -> None:
            remove(*backups.glob("vdb.diff.*"))

        result = b.race(
            Contender("qchain pull --parent", [b.qchain, "pull", uri, "-o", out, "--parent", full], [out, b / "out.manifest"],
                      check, before=lambda: begin("virtnbdbackup.0"), after=guest.end),
            Contender("virtnbdbackup's data phase", virtnbdbackup("diff", backups), [], whole, before=forget,
                      phase=_data_phase))
    yield faster(result, "qchain pull --parent", "virtnbdbackup's data phase", 4)
    yield Verdict("virtnbdbackup: from its connection to the end of its disk, without its start, its second of waiting and "
                  "its end; qchain: all of the process")


def _data_phase(lines: Lines) -> float:
    """Between two lines of virtnbdbackup's log."""
    begin = next(at for at, line in lines if "Connection to NBD backend succeeded" in line)
    return next(at for at, line in lines if re.search(r"Backup of disk \[vdb\] finished", line)) - begin


def _job(since: str, socket: Path, scratch: Path) -> str:
    incremental = f"<incremental>{since}</incremental>" if since else ""
    return f"""<domainbackup mode='pull'>{incremental}<server transport='unix' socket='{socket}'/><disks>
      <disk name='vda' backup='no'/>
      <disk name='vdb' backup='yes' type='file'><driver type='qcow2'/><scratch file='{scratch}'/></disk>
    </disks></domainbackup>"""


# -- proofs -------------------------------------------------------------------------------------------------------------

@row("manifest-only", "The live side against the manifests")
def _manifest_only(b: Bench) -> Iterator[Verdict]:
    full = b.full
    with b.serve_source() as server:
        result = b.race(
            b.contender("verify --manifest-only", "verify", full, "--against", server.uri, "--manifest-only", exit_code=4),
            Contender("nbdcopy to null:", ["nbdcopy", server.uri, "null:"]))
    yield at_most(result, "verify --manifest-only", "nbdcopy to null:", 1.05)


@row("against", "The live side, the manifests and every layer against each other")
def _against(b: Bench) -> Iterator[Verdict]:
    full = b.full
    with b.serve_source() as server:
        result = b.race(
            b.contender("verify --against", "verify", full, "--against", server.uri),
            Contender("qemu-img compare", ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", server.uri, full]))
    yield faster(result, "verify --against", "qemu-img compare", 3)


@row("drill", "Restore drill and digest against SHA-256 on all cores, of the bytes of data alone, in memory")
def _drill(b: Bench) -> Iterator[Verdict]:
    full, cores = b.full, os.cpu_count() or 1
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="qc-bench-") as shared, b.serve_source() as server:
        shares = [Path(shared, str(number)) for number in range(cores)]
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(share.open("wb")) for share in shares]
            for _, content in disks.runs_of_data(b.disk_size, b.data):
                share = -(-len(content) // cores)
                for number, file in enumerate(files):
                    file.write(content[number * share:(number + 1) * share])
        together = " & ".join(f"openssl dgst -sha256 {share}" for share in shares) + " & wait"
        alone = [Contender("sha256sum", ["sha256sum", *shares])]
        if shutil.which("blksum"):
            alone.append(Contender("blksum", ["blksum", "--digest", "sha256", server.uri]))
        result = b.race(
            b.contender("verify", "verify", full),
            b.contender("digest", "digest", full, check=lambda said: _right_digest(b, said)),
            Contender("openssl on all cores", ["sh", "-c", together]), *alone)
    for name in ("verify", "digest"):
        share = result["openssl on all cores"].median / result[name].median
        yield Verdict(f"{name}: {100 * share:.0f}% of what {cores} processes of openssl dgst -sha256 do", ">= 70%",
                      share >= 0.7)
        for peer in alone:
            yield faster(result, name, peer.name, None)


def _right_digest(b: Bench, said: Path) -> None:
    """Held against blkhash by Python."""
    flat = b / "flat"
    tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", b.source, flat)
    if said.read_text().split()[0] != blkhash.of_file(flat):
        raise WrongResult("the digest is wrong")
    remove(flat)


# -- restore ------------------------------------------------------------------------------------------------------------

@row("restore", "Restore of a chain of two layers to a raw file; qemu-img does not fsync, qchain does")
def _restore(b: Bench) -> Iterator[Verdict]:
    layer, out, converted = b.increment, b / "out", b / "converted"
    words = f"qemu-img convert -m 16 -W -f qcow2 -O raw {layer} {converted}"
    check = b.holds(out, "raw", b.changed)
    result = b.race(
        b.contender("restore", "restore", layer, out, output="out", check=check),
        b.contender("restore --no-verify", "restore", layer, out, "--no-verify", output="out", check=check),
        Contender("convert -m 16 -W", words.split(), [converted], b.holds(converted, "raw", b.changed)),
        Contender("convert -m 16 -W, sync", ["sh", "-c", f"{words} && sync {converted}"], [converted]))
    for name, bar in ("restore", 1.1), ("restore --no-verify", 1.5):
        for peer in "convert -m 16 -W", "convert -m 16 -W, sync":
            yield faster(result, name, peer, bar)


# -- metadata -----------------------------------------------------------------------------------------------------------

@row("map", "The map of a huge disk with scattered clusters")
def _map(b: Bench) -> Iterator[Verdict]:
    maps: list[list[tuple[int, int]]] = []
    result = b.race(
        b.contender("chaininfo --map --json", "chaininfo", b.huge, "--map", "--json",
                    check=lambda said: maps.append(disks.data_by_qchain(said))),
        Contender("qemu-img map", ["qemu-img", "map", "--output=json", "-f", "qcow2", b.huge],
                  check=lambda said: maps.append(disks.data_by_qemu(said))))
    if maps[0] != maps[1] or len(maps[0]) != b.size(200_000, 500):
        raise WrongResult("the two maps differ")
    yield faster(result, "chaininfo --map --json", "qemu-img map", 20)


@row("check", "The check of its metadata")
def _check(b: Bench) -> Iterator[Verdict]:
    result = b.race(b.contender("check", "check", b.huge),
                    Contender("qemu-img check", ["qemu-img", "check", "-f", "qcow2", b.huge]))
    yield faster(result, "check", "qemu-img check", 5)


# -- servers that are far away ------------------------------------------------------------------------------------------

@row("latency", "Pulls from a server where each request for data or extents takes 10 ms more")
def _latency(b: Bench) -> Iterator[Verdict]:
    fragmented = ("sparse-random", f"size={b.size(8 * G, 64 * M)}", "percent=8", "runlength=32768", "seed=1")
    sequential = ("pattern", str(b.size(G, 16 * M)))
    out, raw = b / "out", b / "raw"
    for name, plugin in ("fragmented", fragmented), ("sequential", sequential):
        us, peer = f"qchain pull, {name}", f"nbdcopy, {name}"
        with nbdkit(b.folder, *plugin) as near, nbdkit(b.folder, "--filter=delay", *plugin, *DELAY) as far:
            check = b.holds(out, "qcow2", near.uri, "raw")
            result = b.race(
                b.contender(us, "pull", far.uri, "-o", out, output="out", check=check),
                Contender(peer, ["nbdcopy", far.uri, raw], [raw], b.holds(raw, "raw", near.uri, "raw")))
            bounds = b.race(*(Contender(f"nbdcopy -C {c} -R {r} to null:, {name}",
                                        ["nbdcopy", "-C", c, "-R", r, far.uri, "null:"])
                              for c, r in ((4, 64), (8, 16), (8, 64), (16, 16), (16, 64))), runs=1)
        yield faster(result, us, peer, 1)
        best = min(bounds.values(), key=lambda measured: measured.median)
        ratio = result[us].median / best.median
        yield Verdict(f"{us}: {ratio:.2f}x the time of the server's bound: the best of {len(bounds)}, {best.name}", "<= 1.15x",
                      ratio <= 1.15)


def _small_fragments(size: int, percent: int) -> Sequence[Argument]:
    """A disk with data in blocks of 4 KiB: the arguments for nbdkit."""
    return "sparse-random", f"size={size}", f"percent={percent}", "runlength=4096", "seed=1"


# -- scaling ------------------------------------------------------------------------------------------------------------

@row("scaling", "Twice the work takes twice the time, and a larger disk no more than its size")
def _scaling(b: Bench) -> Iterator[Verdict]:
    def scaled(name: str, factors: Sequence[int], plugin: Callable[[int], Sequence[Argument]],
               *options: Argument) -> Iterator[Verdict]:
        first = 0.0
        for factor in factors:
            us = f"qchain pull, {name} x {factor}"
            with nbdkit(b.folder, *plugin(factor)) as server:
                # QEMU compares small fragments slowly, so that it looks at the first size alone.
                check = b.holds(b / "out", "qcow2", server.uri, "raw") if factor == 1 else None
                result = b.race(b.contender(us, "pull", server.uri, "-o", b / "out", *options, output="out", check=check))
            first = first or result[us].median
            growth = result[us].median / first
            bar = (f"<= {1.2 * factor:.1f}x", growth <= 1.2 * factor) if factor > 1 else ()
            yield Verdict(f"{name} x {factor}: {result[us].median:.3f} s, {growth:.2f}x", *bar)

    def sparse_file(factor: int) -> Sequence[Argument]:
        disks.make_sparse_file(b / "sparse", factor * b.size(T, 4 * G) - CLUSTER, b.size(4096, 64))
        return "file", b / "sparse"

    data, disk = b.size(256 * M, 4 * M), b.size(G, 16 * M)
    yield from scaled(f"{data // M} MiB of data", (1, 2, 4, 8), lambda n: ("pattern", str(n * data)))
    yield from scaled(f"{disk // M // 10} MiB in fragments of 4 KiB", (1, 2, 4, 8),
                      lambda n: _small_fragments(n * disk, 10), "--cluster-size", "4K")
    yield from scaled(f"the same data on {b.size(T, 4 * G) // G} GiB of disk", (1, 4, 16), sparse_file)
    remove(b / "sparse")


@row("counts", "System calls and context switches of a pull of many small fragments")
def _counts(b: Bench) -> Iterator[Verdict]:
    needs("strace")
    out, raw, counted = b / "out", b / "raw", b / "strace"
    with nbdkit(b.folder, *_small_fragments(b.size(200 * M, 2 * M), 50)) as server:
        extents = json.loads(tool("nbdinfo", "--map", "--json", server.uri))
        fragments = sum(extent["type"] == 0 for extent in extents)
        ours = [b.qchain, "pull", server.uri, "-o", out, "--cluster-size", "4K"]
        theirs = ["nbdcopy", "--flush", server.uri, raw]
        result = b.race(b.contender("qchain pull", *ours[1:], output="out", check=b.holds(out, "qcow2", server.uri, "raw")),
                        Contender("nbdcopy --flush", theirs, [raw]))
        yield Verdict(f"{fragments} fragments")
        for name, argv in ("qchain pull", ours), ("nbdcopy --flush", theirs):
            tool("strace", "-f", "-c", "-o", counted, *argv)
            remove(out, b / "out.manifest", raw)
            calls = int(re.search(r"^100\.00\s+\S+\s+\S*?\s+(\d+)\s+(?:\d+\s+)?total$", counted.read_text(), re.MULTILINE)[1])
            switches = result[name].to_json()["context_switches"]
            yield Verdict(f"{name}: {calls / fragments:.2f} system calls and {switches / fragments:.2f} context switches "
                          "a fragment")


# -- memory, which comes last -------------------------------------------------------------------------------------------

@row("memory", "Peak memory of every command above, of a pull of a 16 TiB disk, and of a million extents")
def _memory(b: Bench) -> Iterator[Verdict]:
    out, sparse, size = b / "out", b / "sparse", b.size(16 * T, 64 * G) - CLUSTER
    disks.make_sparse_file(sparse, size, 64)
    with nbdkit(b.folder, "file", sparse) as server:
        b.race(b.contender(f"pull of a disk of {-(-size // G)} GiB", "pull", server.uri, "-o", out, output="out"), runs=1)
    remove(sparse)
    with nbdkit(b.folder, *_small_fragments(b.size(24 * G, 24 * M), 10)) as server:
        tool(b.qchain, "pull", server.uri, "-o", out, "--cluster-size", "4K")
        extents = tool(b.qchain, "chaininfo", out, "--map", "--json").count('"kind":')
        remove(out, b / "out.manifest")
        b.race(b.contender(f"pull of {extents} extents", "pull", server.uri, "-o", out, "--cluster-size", "4K", output="out"),
               runs=1)
    if extents < b.size(1_000_000, 1_000):
        raise WrongResult(f"no more than {extents} extents")
    for name, peak in b.peaks.items():
        yield Verdict(f"{name}: {peak / M:.1f} MiB", "<= 64 MiB", peak <= LIMIT)
