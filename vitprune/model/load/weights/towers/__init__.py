"""Image towers of transformers (DINOv2, CLIP, SigLIP) as timm's models, and back: files in and out, without that library."""
