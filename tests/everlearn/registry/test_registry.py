import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from everlearn.bundles.bundle import open_bundle
from everlearn.errors import Conflict, Corrupt, InvalidInput, NotFound, Unsupported
from everlearn.registry.database import write
from everlearn.registry.records import put_alias
from everlearn.registry.registry import Registry
from everlearn.registry.tables import ReplicaRow
from everlearn.settings import Settings


def test_versions_count_from_one_and_the_newest_comes_first(registry: Registry, add: Any) -> None:
    assert [add(registry).ref for _ in range(3)] == ["tiny@1", "tiny@2", "tiny@3"]
    assert [version.version for version in registry.versions("tiny")] == [3, 2, 1]
    assert [model.name for model in registry.list()] == ["tiny"]


def test_a_reference_is_a_number_an_alias_or_the_version_that_serves(registry: Registry, add: Any) -> None:
    add(registry)
    add(registry)
    assert registry.resolve("tiny").version == 2  # no champion: the newest
    registry.set_alias("tiny", "candidate", 1)
    assert registry.resolve("tiny@candidate").version == registry.resolve("tiny@1").version == 1
    registry.promote("tiny@1")
    assert registry.resolve("tiny").version == 1


def test_the_first_servable_version_becomes_champion(registry: Registry, add: Any) -> None:
    add(registry)
    assert registry.aliases("tiny") == {}
    add(registry, format="onnx-genai")
    add(registry, format="onnx-genai")
    assert registry.aliases("tiny") == {"champion": 2}


def test_an_added_version_is_found_as_it_was_added(registry: Registry, add: Any) -> None:
    added = add(registry, recipe={"bits": 4}, metrics={"perplexity": 12.25})
    found = registry.resolve("tiny")
    assert found == added
    assert found.manifest.recipe == {"bits": 4}
    assert (registry.path(found) / "model.safetensors").is_file()


def test_a_staged_bundle_is_moved_and_any_other_is_copied(
    registry: Registry, fill_bundle: Any, bundle: Path
) -> None:
    registry.add(bundle, "copied")
    assert (bundle / "config.json").is_file()
    with registry.staging() as staging:
        fill_bundle(staging, salt="moved")
        registry.add(staging, "moved")
        assert not staging.exists()
    assert registry.path(registry.resolve("moved")).is_dir()


def test_staging_is_private_and_gone_at_the_end(registry: Registry) -> None:
    with pytest.raises(RuntimeError), registry.staging() as staging:
        assert staging.stat().st_mode & 0o777 == 0o700
        (staging / "half").write_text("")
        raise RuntimeError
    assert not staging.exists()


def test_the_same_bundle_under_two_names_is_stored_once(registry: Registry, bundle: Path) -> None:
    one, other = registry.add(bundle, "one"), registry.add(bundle, "other")
    assert registry.path(one) == registry.path(other)
    registry.delete("one")
    registry.collect()
    assert registry.path(other).is_dir()


def test_a_hard_link_in_an_incoming_bundle_is_refused(
    registry: Registry, bundle: Path, tmp_path: Path
) -> None:
    os.link(bundle / "config.json", tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match=r"config\.json is a hard link"):
        registry.add(bundle, "tiny")
    assert registry.list() == []


def test_a_backup_by_hard_links_does_not_stop_serving(registry: Registry, add: Any, tmp_path: Path) -> None:
    path = registry.path(add(registry))
    shutil.copytree(path, tmp_path / "backup", copy_function=os.link)
    assert registry.path(registry.resolve("tiny")) == path


def test_a_changed_byte_is_refused_by_name_before_and_after_it_was_registered(
    registry: Registry, bundle: Path
) -> None:
    weights = bundle / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"!")
    with pytest.raises(Corrupt, match=r"model\.safetensors"):
        registry.add(bundle, "tiny")
    weights.write_bytes(content)
    version = registry.add(bundle, "tiny")
    stored = registry.path(version) / "model.safetensors"
    stored.write_bytes(content[:-1] + b"!")
    with pytest.raises(Corrupt, match=r"model\.safetensors"):
        registry.path(version)


def test_an_exchanged_bundle_is_refused(registry: Registry, add: Any) -> None:
    """Each is valid in itself; the database knows which one was registered."""
    one, other = (registry.path(add(registry)) for _ in range(2))
    shutil.rmtree(one)
    shutil.copytree(other, one)
    with pytest.raises(Corrupt, match=r"bundle\.json describes another bundle"):
        registry.path(registry.resolve("tiny@1"))


def test_verify_reads_every_byte_again(registry: Registry, add: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    version = add(registry)
    registry.verify(version)
    stored = registry.path(version) / "config.json"
    content = stored.read_bytes()
    stored.write_bytes(content.replace(b"llama", b"lLama"))
    monkeypatch.setattr("everlearn.registry.blobs.is_verified", lambda *_: False)
    with pytest.raises(Corrupt, match=r"config\.json"):
        registry.verify(version)


def test_a_lost_bundle_is_told(registry: Registry, add: Any) -> None:
    version = add(registry)
    shutil.rmtree(registry.path(version))
    with pytest.raises(Corrupt, match="is missing: the store lost a bundle"):
        registry.path(version)


def test_not_found_says_what_there_is(registry: Registry, add: Any) -> None:
    with pytest.raises(NotFound, match="none is registered yet: `everlearn import smollm2`"):
        registry.resolve("tiny")
    add(registry, format="onnx")
    with pytest.raises(NotFound, match="did you mean 'tiny'"):
        registry.resolve("tinny")
    with pytest.raises(NotFound, match="there is tiny@champion, tiny@1"):
        registry.resolve("tiny@7")
    with pytest.raises(NotFound, match="there is tiny"):
        registry.versions("other")
    with pytest.raises(NotFound):
        registry.set_alias("tiny", "candidate", 9)
    with pytest.raises(NotFound):
        registry.remove_alias("tiny", "candidate")


def test_an_alias_is_a_word(registry: Registry, add: Any) -> None:
    add(registry)
    for alias in ("7", "", "a b", "../x"):
        with pytest.raises(InvalidInput):
            registry.set_alias("tiny", alias, 1)


def test_promotion_keeps_the_former_champion_and_rollback_brings_it_back(
    registry: Registry, add: Any
) -> None:
    for _ in range(3):
        add(registry, format="onnx")
    with pytest.raises(Conflict, match="no previous champion"):
        registry.rollback("tiny")
    registry.promote("tiny@3")
    assert registry.aliases("tiny") == {"champion": 3, "previous": 1}
    registry.promote("tiny@3")
    assert registry.aliases("tiny") == {"champion": 3, "previous": 1}
    assert registry.rollback("tiny").version == 1
    assert registry.aliases("tiny") == {"champion": 1, "previous": 3}
    with pytest.raises(NotFound):
        registry.rollback("other")


def test_a_rollback_goes_back_to_the_champion_before_however_it_was_moved(
    registry: Registry, add: Any
) -> None:
    for _ in range(3):
        add(registry, format="onnx")
    registry.promote("tiny@2")
    registry.set_alias("tiny", "champion", 3)
    assert registry.aliases("tiny") == {"champion": 3, "previous": 2}
    assert registry.rollback("tiny").version == 2
    registry.remove_alias("tiny", "champion")
    assert registry.aliases("tiny") == {"previous": 2}
    assert registry.rollback("tiny").version == 2
    assert registry.aliases("tiny") == {"champion": 2}
    with pytest.raises(Conflict, match="no previous champion"):
        registry.rollback("tiny")
    with pytest.raises(Conflict, match=r"tiny@2 is the champion"):
        registry.set_alias("tiny", "previous", 2)


def test_a_champion_that_an_earlier_version_left_as_its_own_previous_is_nothing_to_go_back_to(
    registry: Registry, add: Any
) -> None:
    for _ in range(2):
        add(registry, format="onnx")
    with write(registry.database) as connection:
        put_alias(connection, "tiny", "previous", 1)
    with pytest.raises(Conflict, match="no previous champion"):
        registry.rollback("tiny")
    registry.promote("tiny@1")
    assert registry.aliases("tiny") == {"champion": 1}


def test_a_version_that_becomes_champion_by_its_alias_is_on_trial_no_more(
    registry: Registry, add: Any
) -> None:
    for salt in range(2):
        add(registry, format="onnx", recipe={"salt": salt})
    registry.try_out("tiny@2", "canary", 0.5)
    registry.set_alias("tiny", "champion", 2)
    assert registry.aliases("tiny") == {"champion": 2, "previous": 1}


def test_a_trial_ends_when_its_version_is_promoted_and_keeps_it_from_deletion(
    registry: Registry, add: Any
) -> None:
    for salt in range(3):
        add(registry, format="onnx", recipe={"salt": salt})
    registry.try_out("tiny@2", "canary", 0.25)
    registry.try_out("tiny@3", "canary", 0.5)  # takes its place
    registry.try_out("tiny@2", "shadow", 1)
    assert registry.aliases("tiny") == {"champion": 1, "canary": 3, "shadow": 2}
    with pytest.raises(Conflict, match="canary"):
        registry.delete("tiny@3")
    registry.promote("tiny@3")
    assert registry.aliases("tiny") == {"champion": 3, "previous": 1, "shadow": 2}
    registry.end_trial("tiny", "shadow")
    with pytest.raises(NotFound):
        registry.end_trial("tiny", "shadow")
    assert registry.aliases("tiny") == {"champion": 3, "previous": 1}


def test_a_version_that_cannot_be_tried_out_is_refused(registry: Registry, add: Any) -> None:
    for salt in range(2):
        add(registry, format="onnx", recipe={"salt": salt})
    add(registry, format="onnx", task="embed")
    with pytest.raises(Conflict, match="is the champion"):
        registry.try_out("tiny", "canary", 0.1)
    with pytest.raises(Conflict, match="is for embed"):
        registry.try_out("tiny@3", "canary", 0.1)
    for share in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(InvalidInput):
            registry.try_out("tiny@2", "canary", share)
    with pytest.raises(InvalidInput, match="everlearn canary tiny@2"):
        registry.set_alias("tiny", "canary", 2)
    assert registry.aliases("tiny") == {"champion": 1}


def test_lineage_runs_from_child_to_root_across_models(registry: Registry, add: Any) -> None:
    root = add(registry, "base")
    middle = add(registry, "base", parent=root.digest)
    leaf = add(registry, "small", parent=middle.digest)
    assert [version.ref for version in registry.lineage(leaf.ref)] == ["small@1", "base@2", "base@1"]
    orphan = add(registry, "small", parent="0" * 64)
    assert [version.ref for version in registry.lineage(orphan.ref)] == ["small@2"]


def test_the_weights_behind_a_name_are_those_its_champion_was_made_of(registry: Registry, add: Any) -> None:
    original = add(registry)
    champion = add(registry, format="onnx-genai", parent=original.digest)
    add(registry, parent=original.digest)  # trained, and never promoted
    assert registry.weights("tiny") == registry.weights("tiny@champion") == original
    assert registry.weights("tiny@3").version == 3
    with pytest.raises(
        Unsupported, match=f"{champion.ref} is onnx-genai; its float weights are tiny@1: name that"
    ):
        registry.weights(champion.ref)
    add(registry, "alone", format="onnx-genai")
    with pytest.raises(
        NotFound, match="alone@1 is onnx-genai, and the safetensors it was made of are not here"
    ):
        registry.weights("alone")


def test_a_version_that_is_needed_is_not_deleted(registry: Registry, add: Any) -> None:
    parent = add(registry, "base")
    child = add(registry, "small", parent=parent.digest, format="onnx")
    with pytest.raises(Conflict, match="base@1 is the parent of small@1"):
        registry.delete("base@1")
    with pytest.raises(Conflict, match="base@1 is the parent of small@1"):
        registry.delete("base")
    with pytest.raises(Conflict, match="small@1 is champion: move that alias first"):
        registry.delete("small@1")
    registry.delete("small")
    registry.delete("base@1")
    assert registry.list() == []
    assert sorted(registry.collect().bundles) == sorted([parent.digest, child.digest])


def test_a_model_goes_with_its_children_in_it(registry: Registry, add: Any) -> None:
    parent = add(registry)
    add(registry, parent=parent.digest, format="onnx")
    assert {version.ref for version in registry.delete("tiny")} == {"tiny@1", "tiny@2"}


def test_a_bundle_that_is_served_is_not_deleted(registry: Registry, add: Any) -> None:
    version = add(registry)
    row = {
        "id": "r1",
        "model": "tiny",
        "version": 1,
        "digest": version.digest,
        "kind": "onnx",
        "task": "generate",
    }
    row |= {
        "url": "http://127.0.0.1:1",
        "state": "ready",
        "started_at": time.time(),
        "heartbeat_at": time.time(),
    }
    with write(registry.database) as connection:
        connection.execute(insert(ReplicaRow).values(row))
        connection.execute(insert(ReplicaRow).values(row | {"id": "r0", "version": 9, "heartbeat_at": 0}))
    with pytest.raises(Conflict, match="tiny@1 is being served"):
        registry.delete("tiny@1")


def test_the_number_of_a_deleted_version_is_not_used_again(registry: Registry, add: Any) -> None:
    add(registry)
    add(registry)
    registry.delete("tiny@2")
    assert add(registry).ref == "tiny@3"
    registry.delete("tiny")
    assert add(registry).ref == "tiny@4"


def test_collection_keeps_what_a_version_names(registry: Registry, add: Any) -> None:
    kept, gone = add(registry), add(registry)
    registry.delete(gone.ref)
    collected = registry.collect()
    assert collected.bundles == (gone.digest,)
    assert registry.path(kept).is_dir()
    assert registry.collect().bundles == ()


@pytest.mark.parametrize("other", ["changed and hashed anew", "an older version", "its manifest alone"])
def test_a_whole_bundle_in_the_place_of_another_is_refused(
    settings: Settings, add: Any, fill_bundle: Any, other: str
) -> None:
    """A bundle that is right in itself: the database knows the digest of the one that was registered."""
    registry = Registry(settings)
    older, version = add(registry), add(registry)
    registry.path(version)
    place = settings.home / "store" / version.digest
    if other == "changed and hashed anew":
        fill_bundle(place, salt="someone else's")
        open_bundle(place)
    elif other == "an older version":
        shutil.rmtree(place)
        shutil.copytree(settings.home / "store" / older.digest, place)
    else:
        shutil.copy(settings.home / "store" / older.digest / "bundle.json", place / "bundle.json")
    with pytest.raises(Corrupt, match=r"bundle\.json describes another bundle"):
        Registry(settings).path(version)
    assert registry.path(older)
