"""Every name of vLLM that is not public and that Lengthwise relies on, in one place.

vLLM calls its scheduler interface unstable, so the adapter checks at start-up that each name is
there, and refuses with one line that names the version otherwise.

version              which versions are supported
schedulers           what is read of a scheduler, and the little that is set
requests             what is read of requests
workers              hidden states of model runners; executors, where a worker is emulated; a
                     worker in this process
offloading_connector the connector that offloads KV to host memory
serving              vLLM's own command and its arguments
"""
