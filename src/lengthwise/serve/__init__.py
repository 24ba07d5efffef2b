"""One vLLM server as a child process: what `lengthwise serve` and the benchmark both need.

command         the command line and the environment that it is started with
served_model    the model, or the pace of one, and the probe that listens to it
places          what the worker holds beside those that run
vllm_server     started, watched, and stopped together with its engine
engines_folder  where its engines keep their numbers while it runs
child           what runs in the child: vLLM's own server, which ends when its parent does
last_words      the first cause in what a server that ended has printed
settings_file   the file that it is started with, and what learns beside it
settings_check  what can be said of that file beforehand
whereabouts     where servers keep their files, and the kill switch
journal_events  the events of a journal, life by life of its engine
journal_reader  why a request waited
listen          ports and sockets
compile_all     what servers compile when they start, compiled ahead by running it
"""
