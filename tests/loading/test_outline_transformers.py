"""`--init-only` with models of transformers, built from their configurations alone, and adapters of PEFT on them."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

import pytest
import torch

from gradcheck.config.settings import Settings
from gradcheck.instrument.initializers import Initializers
from gradcheck.loading.spec import TargetSpec
from gradcheck.pipeline import scan_target

transformers = pytest.importorskip("transformers")
SMALL = {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "llama": ("LlamaConfig", "AutoModelForCausalLM", {"num_key_value_heads": 2}),
    "mixtral": ("MixtralConfig", "AutoModelForCausalLM", {"num_key_value_heads": 2, "num_local_experts": 4}),
    "bert": ("BertConfig", "AutoModelForSequenceClassification", {"initializer_range": 0.05}),
    "vit": ("ViTConfig", "AutoModelForImageClassification", {"image_size": 32, "patch_size": 8}),
}
FILE = """
    from transformers import AutoModelForCausalLM, LlamaConfig
    def build(layers=80):
        config = LlamaConfig(
            vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=layers,
            num_attention_heads=64, num_key_value_heads=8,
        )
        return AutoModelForCausalLM.from_config(config)
    def adapted():
        from peft import LoraConfig, get_peft_model
        return get_peft_model(build(), LoraConfig(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
"""


@pytest.mark.parametrize("name", CONFIGS)
def test_the_draws_are_those_of_a_real_model(name: str) -> None:
    """Which transformers leaves out on the meta device."""
    config, head, own = CONFIGS[name]
    configured = getattr(transformers, config)(**SMALL, **own)
    torch.manual_seed(0)
    real = dict(getattr(transformers, head).from_config(configured).named_parameters())
    draws = Initializers()
    with torch.device("meta"), draws:
        model = getattr(transformers, head).from_config(configured)
    for key, p in model.named_parameters():
        if p.dim() >= 2 and p.numel() >= 1000:  # else the real one is off by chance
            assert draws.of(p).std == pytest.approx(real[key].std().item(), rel=0.1), key


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "large.py"
    path.write_text(textwrap.dedent(FILE))
    return path


def told(target: str) -> list[str]:
    began = time.process_time()
    report = scan_target(TargetSpec(target, init_only=True), Settings())
    assert time.process_time() - began < 30
    return [a.text for a in report.measurement.assumptions]


def test_seventy_billion_parameters(file: Path) -> None:
    texts = told(f"{file}:build")
    assert any("7.06e+10 parameters, in 723 tensors" in t for t in texts)
    assert any("282 GB of parameters" in t and "a batch is needed" in t for t in texts)
    assert any("561 Linear" in t and "std 0.02, mean 0, gain 1.8 to 3.4" in t for t in texts)


def test_adapters_on_seventy_billion_parameters(file: Path) -> None:
    pytest.importorskip("peft")
    texts = told(f"{file}:adapted")
    assert any("160 adapters of rank 16; none at 401 frozen linear layers (80 k_proj" in t for t in texts)
    assert any("3.28e+07 of them trained" in t for t in texts)
    assert any("561 frozen Linear" in t and "std 0.02" in t for t in texts)
