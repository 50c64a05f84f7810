"""Settings: what parses, what is refused and how errors read."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import ValidationError

from qdrop.config import (
    PRESETS,
    ActivationQConfig,
    Config,
    ConfigError,
    DataConfig,
    LayerBits,
    NetworkConfig,
    QuantConfig,
    ReconConfig,
    config_from_dict,
    config_to_dict,
    load_config,
    save_config,
)
from qdrop.config.help import Setting, _paragraph, settings, settings_help

# Every key of the published code's config files, and no other.
PUBLISHED = """\
process: {seed: 1005}
data:
    num_workers: 4
    pin_memory: True
    batch_size: 64
    path: /data/imagenet
    test_resize: 256
    input_size: 224
model:
    path: /data/resnet18.pth
    kwargs:
        num_classes: 1000
    type: resnet18
quant:
    recon:
        drop_prob: 0.5
        round_mode: learned_hard_sigmoid
        keep_gpu: True
        b_range: [20, 2]
        iters: 20000
        weight: 0.01
        warm_up: 0.2
        scale_lr: 4.0e-5
        batch_size: 32
    calibrate: 100
    w_qconfig:
        bit: 2
        ch_axis: 0
        observer: MSEFastObserver
        quantizer: AdaRoundFakeQuantize
        symmetric: False
    a_qconfig:
        bit: 4
        ch_axis: -1
        observer: AvgMSEFastObserver
        quantizer: LSQFakeQuantize
        symmetric: False
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file in an empty folder, the working directory of the test."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="c.yaml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
        return Path(name)

    return write


def problems(path, *overrides):
    """The problems that are reported for a file."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return list(caught.value.problems)


# What parses


def test_published_layout(write):
    config = load_config(write(PUBLISHED))
    quant = config.quant
    assert (quant.w_qconfig.bit, quant.a_qconfig.bit, quant.calibrate) == (2, 4, 100)
    assert (quant.w_qconfig.observer, quant.a_qconfig.observer) == ("MSEFastObserver", "AvgMSEFastObserver")
    assert (quant.w_qconfig.ch_axis, quant.a_qconfig.ch_axis) == (0, -1)
    assert quant.recon == ReconConfig()  # the published recipe is the default
    assert (config.model.type, config.model.kwargs) == ("resnet18", {"num_classes": 1000})
    assert (config.data.path, config.data.batch_size, config.process.seed) == ("/data/imagenet", 64, 1005)


def test_defaults(write):
    config = load_config(write(""))
    assert config == Config() == config_from_dict({})
    quant = config.quant
    assert (quant.a_qconfig.quantizer, quant.a_qconfig.bit) == ("LSQFakeQuantize", 4)
    assert (quant.w_qconfig.quantizer, quant.w_qconfig.bit) == ("AdaRoundFakeQuantize", 2)
    assert (quant.first_w_bit, quant.last_w_bit, quant.last_a_bit) == (8, 8, 8)
    assert (quant.calibrate, quant.calibrate_range, quant.recon) == (1024, 256, ReconConfig())


def test_weights_only_and_same_bits_everywhere(write):
    quant = load_config(write("quant: {a_qconfig: null, first_w_bit: null}")).quant
    assert quant.a_qconfig is None
    assert quant.first_w_bit is None


@pytest.mark.parametrize("text", ["4e-5", "4.0e-5", "0.00004", "4E-05"])
def test_small_floats(write, text):
    path = write(f"quant: {{recon: {{scale_lr: {text}}}}}")
    assert load_config(path).quant.recon.scale_lr == 4e-5
    assert load_config(path, [f"quant.recon.round_lr={text}"]).quant.recon.round_lr == 4e-5


def test_base_chain_is_relative_to_each_file(write):
    write("quant: {calibrate: 64, recon: {iters: 7, weight: 0.1}}\ndata: {mean: [0, 0, 0]}", "base.yaml")
    write("base: ../base.yaml\nquant: {recon: {weight: 0.2}}\ndata: {mean: [1, 2, 3]}", "mid/base.yaml")
    config = load_config(write("base: ../../mid/base.yaml\nquant: {calibrate: 65}", "a/b/c.yaml"))
    assert config.quant.calibrate == 65
    assert (config.quant.recon.iters, config.quant.recon.weight) == (7, 0.2)
    assert config.data.mean == (1, 2, 3)


def test_overrides_are_typed(write):
    config = load_config(
        write(PUBLISHED),
        [
            "quant.a_qconfig.bit=2",
            "quant.recon.keep_gpu=false",
            "quant.recon.b_range=[10, 3.5]",
            "quant.recon.drop_prob=1",
            "model.kwargs={num_classes: 10}",
            "model.path=null",
            "data.path=",
            "data.classes=a=b",
            "process.device=cuda:1",
        ],
    )
    assert config.quant.a_qconfig.bit == 2
    assert config.quant.recon.keep_gpu is False
    assert config.quant.recon.b_range == (10, 3.5)
    assert isinstance(config.quant.recon.drop_prob, float)
    assert config.model.kwargs == {"num_classes": 10}
    assert (config.model.path, config.data.path, config.data.classes) == (None, None, "a=b")
    assert config.process.device == "cuda:1"


def test_override_turns_reconstruction_on_and_off(write):
    assert load_config(write(""), ["quant.recon.iters=3"]).quant.recon == ReconConfig(iters=3)
    assert load_config(write(PUBLISHED), ["quant.recon=null"]).quant.recon is None


def test_override_of_module_patterns(write):
    overrides = ["quant.overrides[layer1.*].w_bit=3", "quant.overrides={'layer2.0': {a_bit: 5}}"]
    expected = {"layer1.*": LayerBits(w_bit=3), "layer2.0": LayerBits(a_bit=5)}
    assert load_config(write(""), overrides).quant.overrides == expected


# What is refused


def test_all_problems_at_once_each_with_key_and_line(write):
    path = write(
        """\
quant:
  a_qconfig:
    quantizer: AdaRoundFakeQuantize
    bit: 9
  recon:
    itres: 3
    b_range:
      - 2
      - 20
modle:
  type: x
data:
  mean: [1, a, b]
  pin_memory: 1
process: {device: tpu}
"""
    )
    activations = "FixedFakeQuantize | LSQFakeQuantize | LSQPlusFakeQuantize"
    assert sorted(problems(path, "quant.calibrate=0")) == sorted(
        [
            f"c.yaml:3: quant.a_qconfig.quantizer = AdaRoundFakeQuantize: expected {activations}",
            "c.yaml:4: quant.a_qconfig.bit = 9: expected int 2..8",
            "c.yaml:6: quant.recon.itres: unknown key; did you mean quant.recon.iters?",
            "c.yaml:7: quant.recon.b_range: expected the larger value first, as in [20, 2]",
            "c.yaml:10: modle: unknown key; did you mean model?",
            'c.yaml:13: data.mean = [1, "a", "b"]: expected list of 3, each float -1e+06..1e+06',
            "c.yaml:14: data.pin_memory = 1: expected true | false",
            "c.yaml:15: process.device = tpu: expected auto | cpu | cuda | cuda:N",
            "command line: quant.calibrate = 0: expected int 1..1000000000",
        ]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quant: {w_qconfig: {bit: true}}", "quant.w_qconfig.bit = true: expected int 2..8"),
        ("quant: {w_qconfig: {bit: '4'}}", "quant.w_qconfig.bit = 4: expected int 2..8"),
        ("quant: {w_qconfig: {ch_axis: 1}}", "quant.w_qconfig.ch_axis = 1: expected -1 | 0"),
        ("quant: {last_a_bit: 1}", "quant.last_a_bit = 1: expected int 2..8 | null"),
        ("quant: {overrides: {a.b: {w_bit: 1}}}", "quant.overrides.a.b.w_bit = 1: expected int 2..8 | null"),
        ("quant: {recon: {iters: 0}}", "quant.recon.iters = 0: expected int 1..1000000000"),
        ("quant: {recon: {warm_up: 1}}", "quant.recon.warm_up = 1: expected float >= 0, < 1"),
        ("quant: {recon: {drop_prob: 1.5}}", "quant.recon.drop_prob = 1.5: expected float 0..1"),
        ("quant: {recon: {input_prob: -1}}", "quant.recon.input_prob = -1: expected float 0..1 | null"),
        ("quant: {recon: {round_mode: x}}", "quant.recon.round_mode = x: expected learned_hard_sigmoid"),
        ("quant: {recon: {weight: .inf}}", "quant.recon.weight = Infinity: expected float 0..1e+06"),
        ("quant: {recon: 3}", "quant.recon = 3: expected section | null"),
        ("data:", "data = null: expected section"),
        ("data: {std: [1, 1, 0]}", "data.std = [1, 1, 0]: expected list of 3, each float 1e-06..1e+06"),
        ("model: {path: 3}", "model.path = 3: expected text | null"),
        ("iters: 3", "iters: unknown key; did you mean quant.recon.iters or quant.network.iters?"),
        ("bit: 3", "bit: unknown key; did you mean quant.a_qconfig.bit or quant.w_qconfig.bit?"),
        ("quant: {zzz: 3}", "quant.zzz: unknown key; valid here: a_qconfig, w_qconfig, calibrate, "),
        ("zzz: 3", "zzz: unknown key; valid here: quant, model, data, process, base"),
        ("quant: {recon: {presets: fast}}", "quant.recon.presets: unknown key; did you mean quant.recon.preset?"),
        ("quant.recon.iters: 3", "unknown key; in a file, write quant: {recon: {iters: ...}}"),
        ("quant: {overrides.a.w_bit: 3}", "unknown key; in a file, write quant: {overrides: {a: {w_bit: ...}}}"),
        ("quant: {overrides: {a.b: {w_bits: 3}}}", "did you mean quant.overrides.a.b.w_bit?"),
        ("data: {input_size: 300}", "data: input_size 300 cannot be cropped from test_resize 256: "),
        (
            "quant: {w_qconfig: {quantizer: LSQFakeQuantize}, recon: {}}",
            "quant.recon: reconstruction learns the rounding of weights: expected quant.w_qconfig.quantizer",
        ),
    ],
)
def test_refused_values(write, text, expected):
    (problem,) = problems(write("# one line above\n" + text))
    assert problem.startswith("c.yaml:2: ")
    assert expected in problem


def test_a_problem_names_the_file_that_set_the_value(write):
    write("quant:\n  calibrate: 0\n  recon:\n    iters: 0", "base.yaml")
    path = write("base: base.yaml\nquant:\n  recon: {weight: -1}")
    assert problems(path) == [
        "base.yaml:2: quant.calibrate = 0: expected int 1..1000000000",
        "c.yaml:3: quant.recon.weight = -1: expected float 0..1e+06",
        "base.yaml:4: quant.recon.iters = 0: expected int 1..1000000000",
    ]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("quant:\n  recon: [1, 2\nmodel: {}", 3, "expected ',' or ']'"),
        ("quant: {}\nmodel: {}\nquant: {}", 3, "duplicate key quant"),
        ("quant:\n\tcalibrate: 3", 2, "cannot start any token"),
        ("model: {}\ndata: !!python/object:os.system x", 2, "the tag !!python/object:os.system is not supported"),
        ("quant: {}\n---\nquant: {}", 2, "another document"),
    ],
)
def test_bad_yaml(write, text, line, reason):
    (problem,) = problems(write(text))
    assert problem.startswith(f"c.yaml:{line}: not valid YAML: ")
    assert reason in problem


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &x {b: *x}", "the alias *x is not supported"),
        ("a: !!set {b}", "the tag !!set is not supported"),
        ("a: !!int abc", "the tag !!int is not supported"),
        ("!!binary YQ==: 1", "the tag !!binary is not supported"),
        ("? [a]\n: 1", "a key is a list or a mapping"),
        (f"a: {'9' * 5000}", "99999999999999999999... is no number"),
        ('a: "\\uD800"', "no text in UTF-8"),
    ],
)
def test_more_than_plain_data_is_an_error_of_the_line(write, text, reason):
    (problem,) = problems(write(text))
    assert problem.startswith(f"c.yaml:1: not valid YAML: {reason}")


def test_a_key_is_the_text_that_is_written(write):
    assert load_config(write("quant: {overrides: {0: {w_bit: 3}}}")).quant.overrides == {"0": LayerBits(w_bit=3)}
    assert [problem.split(":")[2] for problem in problems(write("1: 2\nnull: 3"))] == [" 1", " null"]


def test_a_list_is_no_config(write):
    assert problems(write("- 1")) == ["c.yaml:1: expected sections (quant, model, data, process), got a list"]


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "${", "x${model.type}"])
def test_nothing_is_interpolated(write, value):
    said = "${...} is not supported, values are taken as they are written"
    path = write(f'model: {{}}\ndata:\n  path: "{value}"\n  # ${{fine}}')
    assert problems(path) == [f"c.yaml:3: data.path = {value}: {said}"]
    assert problems(write(""), f"data.path={value}") == [f"command line: data.path = {value}: {said}"]


def test_missing_files(write):
    path = write("quant: {}\nbase: nowhere.yaml")
    assert problems("other.yaml") == ["other.yaml: no such config file"]
    assert problems(path) == ["c.yaml:2: base = nowhere.yaml: no such file: nowhere.yaml"]
    assert problems(path.parent)[0].startswith(".: cannot be read: ")


def test_base_in_a_circle_or_no_path(write):
    write("base: sub/b.yaml", "a.yaml")
    write("base: ../a.yaml", "sub/b.yaml")
    assert problems("a.yaml") == ["sub/b.yaml:1: base = ../a.yaml: the files build on each other in a circle"]
    assert problems(write("base: [1]")) == ["c.yaml:1: base = [1]: expected the path of a YAML file"]


def test_malformed_overrides(write):
    said = "expected key=value, as in quant.recon.iters=100"
    malformed = ["quant.calibrate", "=3", "quant..calibrate=3", "quant.=3", "a b=3"]
    found = problems(write(""), *malformed, "quant.calibrate=[1")
    assert found[:-1] == [f"command line: {override}: {said}" for override in malformed]
    assert found[-1].startswith("command line: quant.calibrate=[1: ")


def test_override_errors_say_command_line(write):
    path = write(PUBLISHED)
    assert problems(path, "quant.recon.iters=many") == [
        "command line: quant.recon.iters = many: expected int 1..1000000000"
    ]
    assert problems(path, "quant.recon.droop_prob=1") == [
        "command line: quant.recon.droop_prob: unknown key; did you mean quant.recon.drop_prob?"
    ]
    assert problems(path, "quant.recon={iters: 0}") == [
        "command line: quant.recon.iters = 0: expected int 1..1000000000"
    ]


def test_dict_errors_name_the_key():
    with pytest.raises(ConfigError) as caught:
        config_from_dict({"quant": {"calibrate": -1}, "overrides": {1: {"w_bit": 99}}})
    assert caught.value.problems == (
        "quant.calibrate = -1: expected int 1..1000000000",
        "overrides: unknown key; did you mean quant.overrides?",
    )


def test_dataclasses_check_themselves():
    with pytest.raises(ValidationError, match="less than or equal to 8"):
        ActivationQConfig(bit=9)
    with pytest.raises(ValidationError, match="test_resize >= input_size"):
        DataConfig(input_size=300)
    assert QuantConfig(recon=ReconConfig(iters=5)).recon.iters == 5


# In and out


def test_round_trip(write, tmp_path):
    config = load_config(write(PUBLISHED), ["quant.overrides[layer1.*].w_bit=3", "data.val_limit=8"])
    assert config_from_dict(config_to_dict(config)) == config
    save_config(config, "saved.yaml")
    assert load_config("saved.yaml") == config
    assert config_to_dict(config)["quant"]["recon"]["b_range"] == [20, 2]


def test_cache_on_the_gpu_contradicts_keep_gpu():
    recon = {"keep_gpu": False, "cache": {"device": "gpu"}}
    with pytest.raises(ConfigError, match=r"quant\.recon\.cache.*contradicts quant\.recon\.keep_gpu = false"):
        config_from_dict({"quant": {"recon": recon}})
    recon["cache"]["device"] = "disk"
    assert config_from_dict({"quant": {"recon": recon}}).quant.recon.cache.device == "disk"


def test_every_key_of_a_config_is_in_help():
    def leaves(data, above=()):
        for name, value in data.items():
            yield (*above, name)
            if isinstance(value, dict):
                yield from leaves(value, (*above, name))

    quant = QuantConfig(recon=ReconConfig(), network=NetworkConfig(), overrides={"<pattern>": LayerBits()})
    full = config_to_dict(Config(quant=quant))
    listed = {setting.key for setting in settings()}
    assert set(leaves(full)) - {("quant", "overrides", "<pattern>")} == listed


def test_help_keeps_to_the_width():
    assert max(map(len, settings_help(80).splitlines())) <= 80


@pytest.mark.parametrize(("written", "read"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on")])
def test_compile_is_read_as_written(write, written, read):
    """YAML takes a bare on and off for true and false."""
    path = write(f"quant: {{recon: {{compile: {written}}}}}")
    assert load_config(path).quant.recon.compile == read
    assert load_config(path, [f"quant.recon.compile={written}"]).quant.recon.compile == read


def test_presets(write):
    recon = load_config(write("quant: {recon: {preset: fast, weight: 0.1}}")).quant.recon
    assert (recon.iters, recon.round_lr, recon.weight) == (PRESETS["fast"]["iters"], PRESETS["fast"]["round_lr"], 0.1)
    assert recon == ReconConfig(**PRESETS["fast"], weight=0.1)
    assert ReconConfig(**PRESETS["published"]) == ReconConfig()
    over = load_config(write("quant: {recon: {preset: published, weight: 0.1}}"), ["quant.recon.preset=fast"])
    assert over.quant.recon == recon


def test_what_is_set_beside_a_preset_takes_precedence(write):
    recon = load_config(write("quant: {recon: {preset: fast}}"), ["quant.recon.iters=7"]).quant.recon
    assert (recon.iters, recon.round_lr) == (7, PRESETS["fast"]["round_lr"])


def test_unknown_preset(write):
    (problem,) = problems(write("quant: {recon: {preset: fastest}}"))
    assert problem == "c.yaml:1: quant.recon.preset = fastest: expected published | fast | short"


def test_a_preset_replaces_what_the_files_below_set(write):
    write("quant: {recon: {iters: 2000, weight: 0.3}}", "base.yaml")
    path = write("base: base.yaml\nquant: {recon: {round_lr: 0.5}}")
    recon = load_config(path, ["quant.recon.scale_lr=0.7", "quant.recon.preset=fast"]).quant.recon
    fast = PRESETS["fast"]
    assert (recon.iters, recon.round_lr, recon.scale_lr, recon.weight) == (fast["iters"], fast["round_lr"], 0.7, 0.3)


def test_a_section_is_known_by_its_type_not_by_its_words():
    book = Setting(("book",), Annotated[str, "section of a book"], "first", "Where to read.")
    assert _paragraph(book, 80).startswith('  book = "first"  (section of a book)\n')
