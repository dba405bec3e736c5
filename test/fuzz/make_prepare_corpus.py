"""Writes the seed files of the prepare fuzzer: one byte of options (see prepare_fuzz.cpp), then an input file.

Usage: python3 make_prepare_corpus.py   (needs the command zstd; overwrites corpus/prepare/)
"""
import gzip
import json
import os
import subprocess

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus", "prepare")
PLAIN, GZIP, ZSTD, TEXT = range(4)
CHAT, SHORT, WHOLE = 4, 8, 16


def lines(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def write(name, options, data):
    with open(os.path.join(HERE, name), "wb") as file:
        file.write(bytes([options]) + data)


def main():
    os.makedirs(HERE, exist_ok=True)
    pile = lines({"text": "Once upon a time", "meta": {"redpajama_set_name": "Book", "language": "en"}},
                 {"text": "Größe – 大きさ\n\ttab", "meta": {}})
    stack = lines({"content": "int main() { return 0; }\n", "lang": "C", "size": 25},
                  {"content": "int main() { return 0; }\n", "lang": "C", "size": 25})
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"},
             {"role": "assistant", "content": "Hi."}]
    chat = lines({"conversation": turns, "language": "English"}, {"messages": turns[1:]},
                 {"input": "1+1", "output": "2"}, {"prompt": "a", "completion": "b"})
    write("pile", PLAIN, pile)
    write("pile-whole", PLAIN | WHOLE, pile)
    write("stack-whole", PLAIN | WHOLE, stack)
    write("chat", PLAIN | CHAT, chat)
    write("chat-as-text", PLAIN | WHOLE, chat)
    write("chat-whole", PLAIN | CHAT | WHOLE, chat)
    write("short", PLAIN | SHORT | WHOLE, pile + stack)
    write("gzip", GZIP | WHOLE, gzip.compress(stack, mtime=0))
    write("gzip-twice", GZIP, gzip.compress(stack, mtime=0) + gzip.compress(pile, mtime=0))
    write("zstd", ZSTD | WHOLE, subprocess.run(["zstd", "-c"], input=pile, check=True, capture_output=True).stdout)
    write("text", TEXT | WHOLE, "A text file,\r\nof two lines.\n".encode())
    write("escapes", PLAIN | WHOLE, rb'{"text": "\ud83d\ude00 \u0000 \ud800 \"\\\/\b\f\n\r\t"}' + b"\n\n[]\n1e999\r\n")
    write("chat-overflow", PLAIN | CHAT, b'{"input": "a", "output": "b", "n": 1e999}\n')
    write("deep", PLAIN | CHAT, b'{"text":' + b"[" * 200 + b"]" * 200 + b"}\n")


if __name__ == "__main__":
    main()
