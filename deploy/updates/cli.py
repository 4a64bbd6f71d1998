"""``everlearn deploy channel``: publish edge folders to devices, signed, and take them back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everlearn.cli.arguments import Json, open_settings

if TYPE_CHECKING:
    from deploy.updates.channel import Channel
    from deploy.updates.keys import Keys
    from deploy.updates.release import Release

channel = typer.Typer(
    name="channel",
    help="Publish edge folders to devices as signed updates.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Folder = Annotated[
    Path, typer.Argument(metavar="CHANNEL", help="The folder that is published.", show_default=False)
]
KeysFolder = Annotated[
    Path, typer.Option("--keys", help="The folder of private keys, outside of the channel.")
]
RootKeys = Annotated[
    list[Path] | None,
    typer.Option(help="A folder with one of the root's keys, if not KEYS/root; repeat for several keys."),
]
Target = Annotated[str, typer.Option(help="The kind of device, as web or linux-arm64.")]
Alias = Annotated[str, typer.Option(help="champion, or canary for a share of the devices.")]


@channel.command()
def init(
    folder: Folder,
    keys: KeysFolder,
    root_keys: RootKeys = None,
    threshold: Annotated[int, typer.Option(help="How many of the root's keys must sign a rotation.")] = 1,
) -> None:
    """Make a channel and its keys. Give devices its metadata/1.root.json."""
    from deploy.updates.publisher import init as make

    make(folder, keys_of(folder, keys, root_keys), threshold)
    print(f"{folder}: a channel, signed by the keys in {keys}. Devices trust {folder}/metadata/1.root.json")


@channel.command()
def publish(
    folder: Folder,
    what: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|MODEL[@VERSION]", help="An edge folder, or a version to build one from."
        ),
    ],
    keys: KeysFolder,
    target: Annotated[
        str | None, typer.Option(help="For a version: the kind of device, as web or linux-arm64.")
    ] = None,
    alias: Alias = "champion",
    share: Annotated[
        str, typer.Option(help="Share of the devices that get the canary, such as 5%.")
    ] = "100%",
    as_json: Json = False,
) -> None:
    """Publish an edge folder, or a version of the registry, to devices."""
    from deploy.updates.publisher import opened
    from deploy.updates.versions import publish_version
    from everlearn.errors import InvalidInput
    from everlearn.progress import shown

    millionths = share_ppm(share)
    with shown() as progress, opened(folder, keys_of(folder, keys)) as published:
        if (Path(what) / "edge.json").exists():
            release = published.publish(Path(what), alias, millionths, progress)
        else:
            if target is None:
                raise InvalidInput(
                    f"{what} is no edge folder; of a version, say for which kind of device (--target)"
                )
            release = publish_version(published, open_settings(), what, target, alias, millionths, progress)
        sizes = published.update_bytes(release)
    print_release(release, alias, sizes, as_json)


@channel.command()
def rollback(
    folder: Folder,
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    keys: KeysFolder,
    target: Target,
    alias: Alias = "champion",
    to: Annotated[
        int | None, typer.Option(help="The version to go back to; else the one published before.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Send devices back to a former version, or withdraw a canary."""
    from deploy.updates.publisher import opened
    from everlearn.progress import shown

    with shown() as progress, opened(folder, keys_of(folder, keys)) as published:
        release = published.rollback(model, target, alias, to, progress)
        sizes = published.update_bytes(release) if release else {}
    if release is None:
        print(f"{model} for {target}: the canary is withdrawn, and its devices follow the champion")
    else:
        print_release(release, alias, sizes, as_json)


@channel.command()
def rotate(
    folder: Folder,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="root, targets, snapshot or timestamp")],
    keys: KeysFolder,
    root_keys: RootKeys = None,
) -> None:
    """Replace a role's keys; the old ones become invalid. Needs the root's keys."""
    from deploy.updates.publisher import opened

    with opened(folder, keys_of(folder, keys, root_keys)) as published:
        published.repository.rotate(role)
    print(f"{folder}: {role} has new keys")


@channel.command()
def refresh(folder: Folder, keys: KeysFolder, root_keys: RootKeys = None) -> None:
    """Sign anew what would expire, and remove what no version needs. Run it daily: the timestamp holds for 3 days."""
    from deploy.updates.publisher import opened

    with opened(folder, keys_of(folder, keys, root_keys)) as published:
        signed = published.refresh()
    print(f"{folder}: signed {', '.join(signed)}")


@channel.command()
def show(folder: Folder, as_json: Json = False) -> None:
    """What devices get, and until when its signatures hold."""
    from deploy.updates.channel import open_channel
    from everlearn.printing import print_json

    found = describe(open_channel(folder))
    if as_json:
        print_json(found)
        return
    for role, until in found["expires"].items():
        print(f"{role:<10} until {until}")
    for one in found["releases"]:
        share = "" if one["alias"] == "champion" else f", for {one['share']:.4%} of the devices"
        print(f"{one['model']} for {one['target']}, {one['alias']}: version {one['version']}{share}")
        print_sizes(one["update_bytes"])


def keys_of(folder: Path, keys: Path, root_keys: list[Path] | None = None) -> Keys:
    from deploy.updates.keys import Keys

    return Keys(keys, folder, root_keys or ())


def share_ppm(said: str) -> int:
    """A percentage, as ``5%`` or ``0.5``, in millionths. Raises InvalidInput."""
    from everlearn.errors import InvalidInput

    try:
        return round(float(said.removesuffix("%")) * 10_000)
    except (ValueError, OverflowError):
        raise InvalidInput(f"--share {said!r} is no percentage; 5% is", param="share") from None


def print_release(release: Release, alias: str, sizes: dict[str, int], as_json: bool) -> None:
    from everlearn.printing import print_json

    if as_json:
        said = release.model_dump(include={"model", "target", "version", "digest"})
        print_json({**said, "alias": alias, "update_bytes": sizes})
        return
    print(f"{release.model} for {release.target}, {alias}: version {release.version}")
    print_sizes(sizes)


def print_sizes(sizes: dict[str, int]) -> None:
    for base, size in sizes.items():
        print(f"  from {base}: {size:,} bytes")


def describe(channel: Channel) -> dict[str, Any]:
    """What ``show`` prints."""
    from deploy.updates.release import MILLION, VERSIONS

    metadata, releases = channel.metadata, list[dict[str, Any]]()
    for path in metadata.targets.signed.targets:
        model, kind, name = path.split("/")
        if name != VERSIONS and (
            release := channel.release(model, kind, alias := name.removesuffix(".json"))
        ):
            share = metadata.custom(path).get("share_ppm", MILLION)
            of = {"model": model, "target": kind, "alias": alias, "version": release.version}
            releases.append({**of, "share": share / MILLION, "update_bytes": channel.update_bytes(release)})
    roles = ("root", "targets", "snapshot", "timestamp")
    expires = {role: getattr(metadata, role).signed.expires.isoformat() for role in roles}
    return {"expires": expires, "releases": releases}
