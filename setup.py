"""Package metadata. Ranges here are what works; requirements.txt pins what is tested."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "coco": ["pycocotools>=2.0.8"],
    "digits": ["scikit-learn>=1.5"],
    "onnx": ["onnx>=1.20", "onnxruntime>=1.24", "onnxscript>=0.7"],
    "plots": ["matplotlib>=3.9"],
    "timm": ["timm>=1.0.15"],
}

setup(
    name="qdrop",
    version="0.1.0",
    description="Post-training quantization of vision networks to 2-4 bits by QDrop (ICLR 2022)",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["qdrop", "qdrop.*"]),
    package_data={"qdrop": ["py.typed", "*.pyi", "models/assets/*.safetensors"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.8",
        "torchvision>=0.23",
        "numpy>=2.0",
        "networkx>=3.2",
        "lazy-loader>=0.4",
        "pydantic>=2.9",
        "psutil>=5.9",
        "pyyaml>=6.0",
        "rich>=13.7",
        "safetensors>=0.4.5",
        "scipy>=1.13",
    ],
    extras_require=EXTRAS
    | {
        "all": sorted({package for packages in EXTRAS.values() for package in packages}),
        "test": [
            "ipykernel>=6.29",
            "mypy>=1.13",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
        ],
        "notebook": ["ipykernel>=6.29", "ipywidgets>=8.1", "jupyterlab>=4.2", *EXTRAS["digits"], *EXTRAS["plots"]],
    },
    entry_points={"console_scripts": ["qdrop=qdrop.cli:main"]},
)
