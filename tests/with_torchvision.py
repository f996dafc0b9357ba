"""Check a family with torchvision, or with its Python half alone: ``NAME FOLDER``.

A wheel of torchvision that was built for another torch loads once the operators that it asks for
are declared. Resizing needs none of them.
"""

import sys
from importlib import import_module
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parent.parent


def main(name, folder):
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]
    declared = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import_module("torchvision")
    except RuntimeError:
        for operator in ("nms", "qnms"):
            declared.define(f"{operator}(Tensor a, Tensor b, float c) -> Tensor")
        import_module("torchvision")
    families, recipe = import_module("families"), import_module("cmrm_utils.organism.recipe")
    processor = recipe.build_processor(families.TINY, 0)
    checkpoint = families.write_family(name, processor, Path(folder))
    vlm = import_module("cmrm_utils.loading").load_vlm(checkpoint, check=False)
    print(import_module("cmrm_utils.engine.check").check_model(vlm, cached=False).way)


if __name__ == "__main__":
    main(*sys.argv[1:])
