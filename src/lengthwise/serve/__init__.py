"""One vLLM server as a child process: what `lengthwise serve` and the benchmark both need.

command     the command line and the environment that it is started with
vllm_server  started, watched, and stopped together with its engine
child       what runs in the child: vLLM's own server, which ends when its parent does
last_words  the first cause in what a server that ended has printed
compile_all what servers compile when they start, compiled ahead by running it
"""
