"""QDrop: post-training quantization of vision networks to 2-4 bits.

quantized, report = qdrop.quantize(model, images, {"w_qconfig": {"bit": 2}, "recon": {"iters": 2000}})
qdrop.save(quantized, "model.safetensors")    # and qdrop.load("model.safetensors")
"""

import lazy_loader

# Names are listed in __init__.pyi and imported when they are used: importing torch takes seconds, and a command has
# settings that torch must find when it is loaded (qdrop/runtime/openmp.py).
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
