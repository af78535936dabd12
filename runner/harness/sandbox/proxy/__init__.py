"""The socket proxy: what stands between this product and a Docker Engine's socket, which is root on its machine.

Nothing that a client sends reaches the engine as it was sent. A request is read strictly (`request`), held against the
table of calls that the product makes (`calls`), a container's creation against what the product itself would send
(`creation`), and then written anew out of the checked parts (`server`). A path filter could not do that: one allowed
path, the creation of a container, takes ``Binds: /`` and ``Privileged`` in its body.
"""
