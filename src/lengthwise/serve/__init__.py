"""One vLLM server as a child process: what `lengthwise serve` and the benchmark both need.

command         what is served, and the command line and environment that it is started with
flags           vLLM's flags as a user gave them, in the file of --config as well
places          what the worker holds beside those that run
vllm_server     started, watched, and stopped together with its engine; why it ended
child           what runs in the child: vLLM's own server, which ends when its parent does
settings_file   the file that it is started with, and what learns beside it
settings_check  what can be said of that file beforehand
listen          ports and sockets
whereabouts     where servers and engines keep their files, and the kill switch
journal_reader  why a request waited, by the journal of its engine
compile_all     what servers compile when they start, compiled ahead by running it
"""
