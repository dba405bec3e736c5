"""Readers: the bytes of a package's files -> documents. Each yields dicts with "text" and what else it knows."""
import gzip
import re
import struct
import unicodedata
import zlib
from html import unescape
from html.parser import HTMLParser

LANGUAGES = {".py": "Python", ".c": "C", ".h": "C", ".hpp": "C++", ".cpp": "C++", ".go": "Go", ".rs": "Rust", ".pl": "Perl",
             ".pm": "Perl", ".rb": "Ruby", ".sh": "Shell", ".s": "Assembly", ".S": "Assembly", ".erl": "Erlang",
             ".hrl": "Erlang", ".tcl": "Tcl", ".js": "JavaScript", ".ts": "TypeScript", ".php": "PHP", ".cmake": "CMake",
             ".m4": "M4", ".lisp": "Common Lisp", ".scm": "Scheme", ".fs": "Forth", ".m": "MATLAB", ".md": "Markdown",
             ".html": "HTML", ".css": "CSS", ".rst": "reStructuredText", ".txt": "Text"}


def decode(data):
    """Text of a file, perhaps gzipped; UTF-8, else Latin-1 without control characters; else None."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
        return None if re.search(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]", text) else text


def normalise(text):
    """Newlines of one kind, no control characters, no trailing or piled-up blanks."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " "))
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2028\u2029\ufeff]", "", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip("\n")


def squash(text):
    return " ".join(text.split())


class Page(HTMLParser):
    """The blocks of a page's visible text, (kind, text), without navigation, scripts and styles."""

    SKIPPED = set("script style noscript nav header footer aside form button select svg object template math".split())
    VOID = set("area base br col embed hr img input link meta param source track wbr".split())
    BLOCKS = set("p div section article main li ul ol dl dt dd table tr td th caption pre blockquote h1 h2 h3 h4 h5 h6"
                 " body hr address figure details summary center".split())
    FURNITURE = re.compile(r"nav\w*|toc\w*|menu|footer|headerlink|related\w*|sphinxsidebar\w*|breadcrumbs?|noprint|contents"
                           r"|bottomlang|toplang|t-navbar[\w-]*|editsection|catlinks|apache-menu|quickview|page-header|sidebar"
                           r"|preamble|siteSub|mw-head\w*|cpp-(head|footer)[\w-]*|cpp-navigation|docnav|indexterm", re.I)

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.blocks, self.title, self.kind, self.pieces, self.skipped = [], "", "p", [], []
        self.feed(text)
        self.close()
        self.flush()

    def handle_starttag(self, tag, attributes):
        names = " ".join(value or "" for key, value in attributes if key in ("class", "id")).split()
        if tag in self.VOID:
            if tag == "br" and not self.skipped:
                self.pieces.append("\n")
        elif self.skipped:
            self.skipped.append(tag) if tag == self.skipped[0] else None
        elif tag in self.SKIPPED or any(self.FURNITURE.fullmatch(name) for name in names):
            self.skipped = [tag]
        elif tag == "title" or tag in self.BLOCKS:
            self.flush()
            self.kind = tag

    def handle_endtag(self, tag):
        if self.skipped:
            if tag == self.skipped[0]:
                self.skipped.pop()
        elif tag == "title" or tag in self.BLOCKS:
            self.flush()
            self.kind = "p"

    def handle_data(self, data):
        if not self.skipped:
            self.pieces.append(data)

    def flush(self):
        text = "".join(self.pieces).replace("¶", "")
        text = text.strip("\n").rstrip() if self.kind == "pre" else squash(text)
        self.pieces = []
        if self.kind == "title":
            self.title = self.title or text
        elif text.strip():
            self.blocks.append((self.kind, text))


def lay_out(blocks):
    lines, before = [], ""
    for kind, text in blocks:
        if lines and not (kind == before and kind in ("li", "td", "th")):
            lines.append("")
        lines.append(("- " if kind == "li" else "") + text)
        before = kind
    return "\n".join(lines)


def sections(blocks):
    """(heading, blocks below it), headings without their numbers."""
    found = []
    for kind, text in blocks:
        if re.fullmatch(r"h[1-6]", kind):
            found.append((re.sub(r"^(?:(?:Chapter|Section)\s+)?\[?[A-Z]?\d+(?:\.\d+)*[\].:)]*\s+", "", text), []))
        elif found:
            found[-1][1].append((kind, text))
    return found


def pages(files):
    for path, data in files:
        text = decode(data)
        if text:
            yield path, Page(text)


def html(files):
    for path, page in pages(files):
        yield {"text": lay_out(page.blocks), "path": path, "title": page.title}


def c4(files):
    """The published rules of C4: lines of five words that end a sentence; five sentences; no code."""
    for document in html(files):
        text = document["text"]
        lines = [line for line in text.split("\n") if re.search(r"[.!?\"”]$", line) and len(line.split()) >= 5]
        if "{" not in text and sum(len(re.findall(r"[.!?](?=\s|\"|$)", line)) for line in lines) >= 5:
            yield {**document, "text": "\n".join(line for line in lines if "javascript" not in line.lower())}


def text(files):
    for path, data in files:
        content = decode(data)
        if content:
            yield {"text": content, "path": path}


def sections_as_answers(files, is_question):
    for path, page in pages(files):
        for heading, blocks in sections(page.blocks):
            answer = lay_out(blocks)
            if len(answer) >= 80 and is_question(heading):
                yield {"text": f"Q: {heading}\nA: {answer}", "path": path, "title": heading}


def faq(files):
    return sections_as_answers(files, lambda heading: True)


def questions(files):
    pattern = re.compile(r"[?？;]\s*$|^(how|what|why|when|where|which|who|can|could|is|are|do|does|should|will|i |my )\b", re.I)
    return sections_as_answers(files, pattern.search)


PROGRAMS = {"sbasic": "macros", "scalc": "spreadsheet", "sdraw": "drawing", "simpress": "slides", "smath": "formula",
            "swriter": "text document", "shared": "any document"}


def howto(files):
    """Help pages as conversations: a heading asks, what stands below answers. The folder says what the task is about."""
    for path, page in pages(files):
        turns = []
        for heading, blocks in sections(page.blocks):
            if blocks:
                turns += [{"role": "user", "content": heading}, {"role": "assistant", "content": lay_out(blocks)}]
        if turns:
            yield {"text": "\n".join(turn["content"] for turn in turns), "path": path, "turns": turns,
                   "task": PROGRAMS.get(path.split("/")[-3], "other")}


def parallel(files):
    """Pages of one manual in several languages, aligned block by block with the English page."""
    versions = {}
    for path, page in pages(files):
        language, name = path.split("/")[-2:]
        versions.setdefault(name, {})[language] = [block for kind, block in page.blocks if kind != "pre"]
    for name, by_language in sorted(versions.items()):
        english = by_language.get("en", [])
        for language, blocks in sorted(by_language.items()):
            translated = sum(a != b for a, b in zip(blocks, english)) > 0.6 * len(english)
            if len(english) >= 3 and len(blocks) == len(english) and (language == "en" or translated):
                yield {"text": "\n\n".join(blocks), "path": name, "language": language, "segments": blocks}


def code(files):
    """Source files of ordinary shape: no long lines, no data, not generated; a copyright notice at the top is dropped."""
    generated = re.compile(r"(?i)auto-?\s?(matically\s)?generated|generated (by|from|file)|do not (edit|modify)|code generated")
    for path, data in files:
        content = decode(data)
        if not content:
            continue
        ending = re.search(r"\.[A-Za-z0-9]+$", re.sub(r"\.gz$", "", path))
        language = LANGUAGES.get(ending.group() if ending else "", "C++" if "/include/" in path else "Shell")
        notice = re.match(r"\s*/\*.*?\*/\s*|(?:[ \t]*(?://|#(?!!|include|define|if|pragma)|--|;|%)[^\n]*\n)+\s*", content, re.S)
        if notice and re.search(r"(?i)copyright|licen[cs]e", notice.group()):
            content = content[notice.end():]
        lines = content.splitlines() or [""]
        if (max(map(len, lines)) <= 1000 and len(content) <= 100 * len(lines) and not generated.search("\n".join(lines[:12]))
                and sum(map(str.isalnum, content)) >= 0.25 * len(content)):
            yield {"text": content, "path": path, "language": language}


def latex(files):
    """RedPajama's rules for arXiv: from the first section to the appendix or bibliography, no comments."""
    first = re.compile(r"\\(?:chapter|part|section|subsection|paragraph|subsec)\b\*?\s*(?:\[[^\]]*\])?\s*\{")
    last = re.compile(r"\\appendix\b|\\begin\{thebibliography\}|\\bibliography\{|\\printbibliography|\\end\{document\}")
    for path, data in files:
        content = decode(data) or ""
        content = re.sub(r"(?m)^[ \t]*%.*\n?|(?<!\\)%.*$", "", content)
        content = re.sub(r"(?ms)^<<[^\n]*>>=[ \t]*\n(.*?)^@[^\n]*$", r"\\begin{verbatim}\n\1\\end{verbatim}", content)
        start = first.search(content)
        if start:
            content = content[start.start():]
            end = last.search(content)
            yield {"text": content[:end.start()] if end else content, "path": path}


def dictionary(files):
    """Entries of 200 characters and more of a dictd database: an index of offsets in base 64, and the text."""
    digits = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}

    def number(word):
        value = 0
        for digit in word:
            value = value * 64 + digits[digit]
        return value

    by_kind = {path.rsplit(".", 1)[1]: data for path, data in files}
    data = gzip.decompress(by_kind["dz"])
    entries = {}
    for line in by_kind["index"].decode("utf-8", "replace").splitlines():
        word, offset, length = (line.split("\t") + ["", ""])[:3]
        if length and not word.startswith("00"):
            entries.setdefault((number(offset), number(length)), word)
    for (offset, length), word in sorted(entries.items()):
        entry = data[offset:offset + length].decode("utf-8", "replace")
        entry = re.sub(r"\\[^\\\n]*\\,?|\s*\[(?:1913 Webster|WordNet|PJC|AS|RP)\b[^\]]*\]", "", entry)  # sounds, sources
        entry = re.sub(r"\{\s*([^{}]*?)\s*\}", lambda match: squash(match.group(1)), entry)
        entry = "\n\n".join(squash(part) for part in re.split(r"\n[ \t]*\n", entry) if part.strip())
        if len(entry) >= 200:
            yield {"text": entry, "path": word, "title": word}


def bible(files):
    """The books of a SWORD module: an index of (offset, size, size unpacked), and zlib blocks of OSIS markup."""
    by_path = dict(files)
    for path in sorted(by_path):
        if not path.endswith(".bzs"):
            continue
        blocks = by_path[path[:-1] + "z"]
        for number, (offset, size, _) in enumerate(struct.iter_unpack("<III", by_path[path][:len(by_path[path]) // 12 * 12])):
            markup = zlib.decompress(blocks[offset:offset + size]).decode("utf-8", "replace")
            markup = re.sub(r"<note\b.*?</note>|<title[^>]*type=\"main\"[^>]*>.*?</title>", " ", markup, flags=re.S)
            markup = re.sub(r'<chapter\b[^>]*\bn="(\d+)"[^>]*\bsID=[^>]*>', r"\n\nChapter \1\n\n", markup)
            markup = re.sub(r"<(?:div|lg|l|p|title)\b[^>]*\bsID=[^>]*>|<lb\b[^>]*>", "\n", markup)
            content = unescape(re.sub(r"<[^>]+>", "", markup))
            yield {"text": "\n".join(map(squash, content.split("\n"))), "path": f"{path}/{number}"}


READERS = {"html": html, "c4": c4, "text": text, "sections": faq, "questions": questions, "howto": howto,
           "parallel": parallel, "code": code, "latex": latex, "dictionary": dictionary, "bible": bible}
