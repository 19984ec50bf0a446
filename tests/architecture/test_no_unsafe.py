"""Reading a file never runs code, and no random number comes from a global state."""

from __future__ import annotations

import ast
import re

import pytest

FORBIDDEN_IMPORTS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "random"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "__import__",
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.hub.load",
    "torch.hub.load_state_dict_from_url",
    "yaml.load",
    "yaml.unsafe_load",
    "torch.manual_seed",
    "torch.seed",
    "torch.set_rng_state",
    "torch.random.manual_seed",
    "torch.random.seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.rand_like",
    "torch.randn_like",
    "torch.randint_like",
    "torch.nn.Dropout",
    "torch.nn.functional.dropout",
}
NEEDS_GENERATOR = re.compile(
    r"torch\.(rand|randn|randint|randperm|bernoulli|multinomial|normal|poisson)"
    r"|torch\.nn\.init\.(?!zeros_|ones_|constant_|eye_|dirac_)\w+_"
    r"|.*\.(random_|uniform_|normal_|bernoulli_|exponential_|cauchy_|geometric_|log_normal_)"
)
NUMPY_RANDOM = re.compile(
    r"numpy\.random\.(?!default_rng$|Generator$|SeedSequence$|BitGenerator$|PCG64$|Philox$)\w+"
)


def findings(tree: ast.Module) -> list[str]:
    """What a module may not do, as ``line: name``."""
    names = imported(tree)
    found = [(0, name) for name in names.values() if name.split(".")[0] in FORBIDDEN_IMPORTS]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and NUMPY_RANDOM.fullmatch(dotted(node, names)):
            found.append((node.lineno, dotted(node, names)))
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, names)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in FORBIDDEN_CALLS or (NEEDS_GENERATOR.fullmatch(name) and "generator" not in keywords):
            found.append((node.lineno, name))
        allow = keywords.get("allow_pickle")
        if allow is not None and not (isinstance(allow, ast.Constant) and allow.value is False):
            found.append((node.lineno, f"{name}(allow_pickle=...)"))
    return [f"{line}: {name}" for line, name in sorted(found)]


def imported(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for, wherever in the module it is imported."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.name if alias.asname else alias.name.split(".")[0]
                names[alias.asname or bound] = bound
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """The full name of ``a.b.c``, with imports followed; ``?`` stands for what is not a name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return "?"


def test_no_source_file_does_what_is_unsafe(sources):
    """No module unpickles, evaluates text, or draws from a random state that it was not given."""
    assert {source.path: findings(source.tree) for source in sources if findings(source.tree)} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "import random",
        "eval('1')",
        "import torch\ntorch.load('x')",
        "from torch import load\nload('x')",
        "import yaml\nyaml.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.random.seed(0)",
        "import numpy as np\ndraw = np.random.rand",
        "from numpy import random\nrandom.permutation(3)",
        "import torch\ntorch.manual_seed(0)",
        "import torch\ntorch.randn(3)",
        "import torch\ntorch.randn_like(x)",
        "import torch\ntorch.empty(3).uniform_(0, 1)",
        "from torch import nn\nnn.init.normal_(w)",
        "from torch.nn import functional\nfunctional.dropout(x)",
    ],
)
def test_unsafe_code_is_found(code):
    """Each unsafe thing is found, under whatever name it is imported."""
    assert len(findings(ast.parse(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.randn(3, generator=g)",
        "import torch\ntorch.Generator().manual_seed(0)",
        "import numpy as np\nnp.random.default_rng(0).normal(size=3)",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "from safetensors.torch import load\nload(b'')",
        "from torch import nn\nnn.init.zeros_(w)\nnn.init.normal_(w, generator=g)",
        "import re\nre.compile('x')",
        "model.eval()",
    ],
)
def test_safe_code_is_let_pass(code):
    """What is given its generator, or reads data only, is no finding."""
    assert findings(ast.parse(code)) == []
