"""Metadata, dependencies and extras."""

import pathlib

import setuptools

_REPORT = ["matplotlib>=3.9", "pandas>=2.2"]
_DATASETS = ["scikit-learn>=1.5"]
_SEARCH = ["optuna>=5.0"]
_HUGGING_FACE = ["datasets>=4.0"]
_CLUSTER = ["distributed>=2026.8"]
_AUDIO = ["soundfile>=0.13", "soxr>=0.5"]

setuptools.setup(
    name="diffstride",
    version="0.1.0",
    description="DiffStride for Keras 3: downsampling with learned strides",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    author="DiffStride for Keras 3 developers",
    license="Apache-2.0",
    keywords=[
        "deep learning",
        "downsampling",
        "keras",
        "learned strides",
        "pooling",
        "spectral pooling",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    project_urls={"Paper": "https://arxiv.org/abs/2202.01653"},
    python_requires=">=3.11",
    packages=[
        *setuptools.find_packages(include=["diffstride", "diffstride.*"]),
        "diffstride.configs",
    ],
    package_dir={"diffstride.configs": "configs"},
    package_data={
        "diffstride": ["py.typed"],
        "diffstride.configs": ["*.gin", "sweeps/*.toml", "searches/*.toml"],
    },
    # The lower bounds were tried, all at once, with Python 3.11.
    install_requires=[
        "absl-py>=2.1",
        "gin-config>=0.5",
        # tensorflow-datasets imports it without requiring it.
        "importlib_resources>=6.4",
        "keras>=3.11",
        "numpy>=1.26",
        # tensorflow-metadata needs it and admits older ones.
        "protobuf>=6.31.1",
        # tensorflow no longer brings it.
        "tensorboard>=2.20",
        "tensorflow>=2.20",
        "tensorflow-datasets>=4.9.9",
        "typeguard>=4.3",
    ],
    extras_require={
        "audio": _AUDIO,
        "cluster": _CLUSTER,
        "datasets": _DATASETS,
        "huggingface": _HUGGING_FACE,
        "jax": ["jax>=0.10"],
        "report": _REPORT,
        "search": _SEARCH,
        "test": [
            *_AUDIO,
            *_CLUSTER,
            *_DATASETS,
            *_HUGGING_FACE,
            *_REPORT,
            *_SEARCH,
            "hypothesis>=6.100",
            "jax>=0.10",
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "ruff>=0.17,<0.18",
            # One version: where newer ones bring CUDA, this one may not.
            "torch==2.13.0",
        ],
        "torch": ["torch>=2.7"],
    },
)
