"""The comparison of the image codec with JPEG, WebP and AVIF."""
