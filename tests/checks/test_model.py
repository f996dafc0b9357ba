"""The check at load: what is right passes, what is broken falls back or is refused by name."""

import logging
import shutil
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from click.testing import CliRunner
from families import write_family
from passes import plain, watched

from cmrm_utils import InputError, Trial, generate, hidden_states, load_vlm
from cmrm_utils.checks import alone, model
from cmrm_utils.checks.model import check_model
from cmrm_utils.cli.main import cli
from cmrm_utils.engine import batch, inputs
from cmrm_utils.engine.loops import response_header
from cmrm_utils.hooks import Steering


@pytest.fixture
def llava(family_folders):
    return load_vlm(family_folders["llava"], check=False)


def test_the_families_of_before_run_in_the_fastest_way(family):
    report = check_model(family, cached=False)
    assert report.way == family.way == "shared"
    assert family.checked
    assert len(report.rows) == (4 if family.sees_images else 3)
    assert all(row.right for row in report.rows)


def test_a_text_and_an_image_run_through_all_layers_and_a_batch_through_the_first(
    llava, monkeypatch
):
    monkeypatch.setattr(alone, "FIRST", 1)
    layers, config = llava.layers, llava.model.config.to_dict()
    last = []
    layers[-1].register_forward_hook(lambda module, args, output: last.append(args[0].shape))
    assert check_model(llava, cached=False).way == "shared"
    rows, lengths, _ = zip(*last, strict=True)
    assert rows == (1, 1, 2)  # each by transformers alone, both by the engine
    assert lengths[0] < lengths[1]  # the image's tokens
    assert llava.layers is layers
    assert tuple(llava.model.model.language_model.layers) == layers
    assert llava.model.config.to_dict() == config


def test_a_late_layer_that_differs_is_found(llava, monkeypatch):
    def off(*args):
        states = hidden_states(*args)
        states[:, 2:] += 1
        return states

    monkeypatch.setattr(alone, "FIRST", 1)
    monkeypatch.setattr(model, "hidden_states", off)
    with pytest.raises(
        InputError, match="text and image at every layer: not what transformers alone gives"
    ):
        check_model(llava, cached=False)


def test_a_decoder_that_cannot_be_cut_off_is_checked_whole(llava, monkeypatch):
    real = model.only_first

    def whole_alone(vlm, count):
        if count < len(vlm.layers):
            raise ValueError("these layers belong together")
        return real(vlm, count)

    monkeypatch.setattr(alone, "FIRST", 1)
    monkeypatch.setattr(model, "only_first", whole_alone)
    report = check_model(llava, cached=False)
    assert (report.way, report.reason) == ("shared", "")
    assert len(report.rows) == 4


def test_half_precision_is_right_within_its_noise(family_folders):
    vlm = load_vlm(family_folders["qwen2.5-vl"], dtype="bfloat16", check=False)
    report = check_model(vlm, cached=False)
    assert report.way == "shared"
    assert max(row.difference for row in report.rows) > 1e-4


def test_a_wrong_beginning_costs_the_sharing_alone(llava, requests, monkeypatch, caplog):
    """Keys of a shared beginning that are off by a little."""
    real = batch.Beginnings._of

    def off(self, *args):
        return [[(keys * 1.01, values) for keys, values in row] for row in real(self, *args)]

    monkeypatch.setattr(batch.Beginnings, "_of", off)
    with caplog.at_level(logging.WARNING):
        report = check_model(llava, cached=False)
    assert report.way == llava.way == "batches"
    assert "in batches of whole prompts: prompts side by side" in caplog.text
    assert len(caplog.records) == 1
    trials = [Trial(r, "blank") for r in requests[:3]]
    wanted = torch.stack([plain(llava, trial)[0] for trial in trials])
    torch.testing.assert_close(hidden_states(llava, trials), wanted, rtol=1e-4, atol=1e-4)


def test_a_token_that_is_dropped_leaves_the_plain_way(llava, requests, monkeypatch, caplog):
    """As of a processor that frames an image, and an engine that does not."""
    real = inputs.Images.get

    def cut(self, *args):
        image = real(self, *args)
        return image and replace(image, written=image.written[:-1], features=image.features[:-1])

    monkeypatch.setattr(inputs.Images, "get", cut)
    report = check_model(llava, cached=False)
    assert report.way == llava.way == "plain"
    assert "the ids of a prompt" in report.reason
    trials = [Trial(r, image) for r in requests[:2] for image in ("own", "none")]
    wanted = [plain(llava, trial, steps=4) for trial in trials]
    states = hidden_states(llava, trials)
    torch.testing.assert_close(states, torch.stack([each for each, _ in wanted]))
    assert generate(llava, trials, max_new_tokens=4) == [llava.decode(ids) for _, ids in wanted]


def test_edits_that_miss_refuse_the_model(llava, monkeypatch):
    monkeypatch.setattr(Steering, "edited", lambda self, place, layer, states: states)
    with pytest.raises(
        InputError, match=r"an edited response: not what .*: use another model"
    ) as bad:
        check_model(llava, cached=False)
    assert str(bad.value).startswith(llava.name)
    assert llava.way == "shared"
    assert llava.checked is False


def test_weights_that_are_no_numbers_refuse_the_model(llava):
    with torch.no_grad():
        llava.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="states are not numbers"):
        check_model(llava, cached=False)


@pytest.mark.parametrize("told", [torch.OutOfMemoryError, MemoryError, RuntimeError])
@pytest.mark.parametrize("where", ["states_alone", "respond"])
def test_a_check_without_memory_is_no_verdict(llava, where, told, monkeypatch):
    def full(*_, **__):
        raise told("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(model, where, full)
    with pytest.raises(told, match="can't allocate"):
        check_model(llava, cached=False)
    assert llava.checked is False


def test_images_are_encoded_twice_alone_and_twice_by_the_engine(llava):
    seen = []
    llava.core.vision_tower.register_forward_hook(lambda *_: seen.append(1))
    check_model(llava, cached=False)
    assert len(seen) == 4


def test_images_that_reach_no_layer_refuse_the_model(llava, monkeypatch):
    real = llava.model.model.get_image_features

    def blind(pixel_values, **more):
        return real(torch.zeros_like(pixel_values), **more)

    monkeypatch.setattr(llava.model.model, "get_image_features", blind)
    with pytest.raises(InputError, match="two images give the same states"):
        check_model(llava, cached=False)


def test_a_report_is_kept(family_folders, tmp_path, monkeypatch, checks):
    folder = shutil.copytree(family_folders["llava"], tmp_path / "same")
    load_vlm(folder)
    vlm = load_vlm(folder, check=False)
    with watched(vlm) as passes:
        report = check_model(vlm)
    assert passes == []
    assert report.way == "shared"
    with watched(vlm) as passes:
        monkeypatch.setattr(model, "_versions", lambda: "others")
        check_model(vlm)
    assert len(passes) > 5
    kept = checks / "checks" / f"{model._key(vlm)}.json"
    kept.write_text("{")  # torn
    with watched(vlm) as passes:
        check_model(vlm)
    assert len(passes) > 5
    monkeypatch.setattr(model, "cache_home", lambda: kept)  # a file, so that none can be written
    assert check_model(vlm).way == "shared"


def test_an_unchecked_model_marks_its_results(family_folders):
    vlm = load_vlm(family_folders["vicuna"], check=False)
    assert response_header(vlm, 8)["checked"] is False
    assert "checked" not in response_header(load_vlm(family_folders["vicuna"]), 8)


def test_the_command_prints_the_table(family_folders):
    shown = CliRunner().invoke(cli, ["models", "check", str(family_folders["llava"])])
    assert shown.exit_code == 0, shown.output
    assert "| shared | an edited response | 0.0e+00 | 1e-03 | right |" in shown.output
    assert "runs shared" in shown.output


def test_the_command_shows_what_a_refused_model_was_compared_in(family_folders, monkeypatch):
    monkeypatch.setattr(Steering, "edited", lambda self, place, layer, states: states)
    shown = CliRunner().invoke(cli, ["models", "check", str(family_folders["llava"])])
    assert shown.exit_code == 2
    rows = [line for line in shown.output.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 4 + 4 + 3  # the head, and each way's comparisons
    assert [row.split("|")[5].strip() for row in rows if "edited response" in row] == [
        "differs"
    ] * 3
    assert "an edited response: not what transformers alone gives" in shown.output.split("\n\n")[-1]


def test_what_cannot_be_loaded_names_the_extra(processor, tmp_path):
    if find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed")
    folder = write_family("qwen2-vl", processor, tmp_path)
    settings = folder / "processor_config.json"
    settings.write_text(
        settings.read_text().replace("Qwen2VLImageProcessor", "Lfm2VlImageProcessor")
    )
    with pytest.raises(InputError, match=r"by torchvision: pip install 'cmrm-workbook\[vision"):
        load_vlm(folder)
