"""The axis letters used in signatures and einsum strings all over the package.

B batch · T query tokens · S key tokens · D embed (model width) · F mlp · N heads · K kv heads · G = N / K · H head dim ·
L layers · V vocab · C classes · Y image height · X image width. Kernels are stored two-dimensional, [in, out].
"""
