"""Which Debian 12 packages (section main) stand in for which data set of the paper, and how they are read.

A row: domain, packages, licence, reader (readers.py), regular expression of the files wanted, of those not
wanted, and the most megabytes of text to take, so that no source drowns its domain.
"""
from typing import NamedTuple, Tuple


class Source(NamedTuple):
    domain: str
    packages: Tuple[str, ...]
    licence: str
    reader: str
    wanted: str
    unwanted: str = r"(?!)"
    max_mb: float = 8.0


def row(domain, packages, *rest, **options):
    return Source(domain, tuple(packages.split()), *rest, **options)


CATALOGUE = (
    row("arxiv", "texlive-science-doc", "LPPL-1.3c and others, see the package", "latex", r"/doc/.*\.tex(\.gz)?$"),
    row("arxiv", "pari-doc", "GPL-2+", "latex", r"pari/doc/(usersch\d|tutorial|tutorial-mf|develop)\.tex$"),
    row("arxiv", "r-cran-flexmix r-cran-kernlab r-cran-lme4 r-cran-party r-cran-robustbase r-cran-surveillance"
        " r-cran-survival r-cran-vcd r-cran-zoo", "GPL-2+", "latex", r"/doc/.*\.Rnw(\.gz)?$"),
    row("book", "abs-guide", "public domain", "html", r"html/.*\.html$"),
    row("book", "mh-book", "GPL-2+", "html", r"mh-book/html/.*\.html?$"),
    row("book", "png-definitive-guide", "GFDL-1.1+", "html", r"html/.*\.html$"),
    row("book", "c++-annotations-txt", "GPL-2+", "text", r"\.txt(\.gz)?$"),
    row("book", "sword-text-web", "public domain", "bible", r"\.bz[sz]$"),
    row("c4", "postgresql-doc-15", "PostgreSQL licence", "c4", r"/html/.*\.html$"),
    row("c4", "sqlite3-doc", "public domain", "c4", r"doc/sqlite3/.*\.html$", r"/(keyword_index|sitemap|doclist)"),
    row("c4", "apache2-doc", "Apache-2.0", "c4", r"manual/en/.*\.html$", r"faq"),
    row("c4", "git-doc", "GPL-2", "c4", r"git-doc/.*\.html$", r"gitfaq|RelNotes"),
    row("common_crawl", "python3.11-doc", "PSF-2.0", "html", r"python3\.11/html/.*\.html$",
        r"/(faq|_sources)/|genindex|modindex|(search|changelog|html/index|html/contents|html/download)\.html"),
    row("common_crawl", "cppreference-doc-en-html", "CC-BY-SA-3.0 or GFDL-1.3", "html", r"html/en/.*\.html$", max_mb=5),
    row("common_crawl", "libreoffice-help-en-us", "MPL-2.0", "html", r"en-US/text/.*\.html$", r"/guide/"),
    row("common_crawl", "exim4-doc-html zsh-doc", "GPL-2+, zsh licence", "html", r"\.html$", r"/FAQ|Index|ix01"),
    row("github", "golang-1.19-src", "BSD-3-Clause", "code", r"/src/.*\.(go|md)$", r"/(testdata|vendor)/|_test\.go$|/cmd/"),
    row("github", "python3-django", "BSD-3-Clause", "code", r"django/.*\.(py|js|html|css)$", r"/locale/|\.min\.|/vendor/"),
    row("github", "ruby-activesupport ruby-activerecord ruby-actionpack", "MIT", "code", r"\.(rb|md)$"),
    row("github", "node-express node-lodash", "MIT", "code", r"\.(js|md|ts)$", r"\.min\.js|/lodash(\.core)?\.js"),
    row("github", "php-symfony-console php-twig php-guzzlehttp-psr7", "MIT, BSD-3-Clause", "code", r"\.(php|md)$"),
    row("github", "tcllib", "BSD-style", "code", r"\.tcl$", max_mb=3),
    row("github", "cmake-data", "BSD-3-Clause", "code", r"\.(cmake|rst)$", max_mb=3),
    row("stackexchange", "debian-faq debian-faq-de debian-faq-fr debian-faq-it debian-faq-ja debian-faq-ko"
        " debian-faq-nl debian-faq-pt debian-faq-ru debian-faq-zh-cn", "Debian FAQ licence", "sections",
        r"FAQ/.*\.[\w-]+\.html$"),
    row("stackexchange", "python3.11-doc", "PSF-2.0", "questions", r"python3\.11/html/faq/.*\.html$"),
    row("stackexchange", "apache2-doc", "Apache-2.0", "questions", r"manual/(en|fr)/(ssl|faq)/.*faq.*\.html$"),
    row("stackexchange", "python-django-doc", "BSD-3-Clause", "questions", r"html/faq/.*\.html$"),
    row("stackexchange", "fetchmail ffmpeg-doc git-doc mplayer-doc privoxy r-doc-html zsh-doc",
        "GPL-2+, LGPL-2.1+ (ffmpeg-doc), zsh licence (zsh-doc)", "questions",
        r"(fetchmail-FAQ|manual/[\w-]*faq|gitfaq|HTML/\w+/faq|privoxy/faq/\w+|manual/R-FAQ|/FAQ\d+)\.html$"),
    row("wikipedia", "apache2-doc", "Apache-2.0", "html", r"manual/(de|es|fr|ja|ko|pt|zh)(-\w+)?/.*\.html$",
        r"faq|quickreference|directives\.html"),
    row("wikipedia", "debian-handbook", "GPL-2+ or CC-BY-SA-3.0", "html", r"html/(?!en)[\w-]+/[\w.-]+\.html$",
        r"/(index|ix\d+)\.html$"),
    row("wikipedia", "debian-reference-de debian-reference-es debian-reference-fr debian-reference-it"
        " debian-reference-ja debian-reference-zh-cn", "GPL-2+", "html", r"debian-reference/\w+\.[\w-]+\.html$",
        r"/index\."),
    row("wikipedia_en", "dict-foldoc", "GFDL-1.1+", "dictionary", r"foldoc\.(index|dict\.dz)$"),
    row("wikipedia_en", "dict-jargon", "public domain", "dictionary", r"jargon\.(index|dict\.dz)$"),
    row("wikipedia_en", "dict-gcide", "GPL-2+", "dictionary", r"gcide\.(index|dict\.dz)$"),
    row("wikipedia_en", "dict-wn", "WordNet licence", "dictionary", r"wn\.(index|dict\.dz)$", max_mb=2),
    row("the_stack", "libpython3.11-stdlib", "PSF-2.0", "code", r"\.py$", max_mb=5),
    row("the_stack", "newlib-source", "BSD-style, by file", "code", r"\.[chSs]$", r"/testsuite/"),
    row("the_stack", "golang-golang-x-tools-dev", "BSD-3-Clause", "code", r"\.go$", r"/testdata/", max_mb=4),
    row("the_stack", "libeigen3-dev nlohmann-json3-dev libfmt-dev", "MPL-2.0, MIT", "code",
        r"include/.*(/[A-Z]\w+|\.h|\.hpp)$", max_mb=4),
    row("the_stack", "erlang-src", "Apache-2.0", "code", r"\.(erl|hrl)$", r"/test/|asn1|_SUITE", max_mb=4),
    row("the_stack", "rust-src", "MIT or Apache-2.0", "code", r"/library/(core|alloc|std)/src/.*\.rs$",
        r"/stdarch/|core_arch", max_mb=5),
    row("the_stack", "perl-modules-5.36", "Artistic or GPL-1+", "code", r"\.(pm|pl)$", r"/unicore/|/lib/", max_mb=5),
    row("the_stack", "libruby3.1", "Ruby or BSD-2-Clause", "code", r"\.rb$", max_mb=4),
    row("the_stack", "zsh-common bash-completion debootstrap", "zsh licence, GPL-2+, MIT", "code",
        r"share/zsh/functions/|bash-completion/|debootstrap/", r"\.zwc$", max_mb=4),
    row("the_stack", "octave-common autoconf-archive", "GPL-3+", "code", r"\.m4?$", max_mb=3),
    row("the_stack", "slib cl-ironclad gforth-common", "permissive, BSD-3-Clause, GPL-3+", "code", r"\.(scm|lisp|fs)$",
        max_mb=3),
    row("the_stack", "libjs-codemirror", "MIT", "code", r"\.js$", r"\.min\.js$", max_mb=2),
    row("conversations", "libreoffice-help-en-us", "MPL-2.0", "howto", r"en-US/text/\w+/guide/.*\.html$"),
    row("parallel", "installation-guide-amd64", "GPL-2", "parallel", r"installation-guide-amd64/\w+/[\w.-]+\.html$"),
)
