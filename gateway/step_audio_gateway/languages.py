"""Languages by their codes, as the model is told of them."""

from __future__ import annotations

from step_audio_gateway.errors import refused

OWN = "English"  # of the question, so that it says nothing new

# ISO 639-1, but for Cantonese and Hawaiian, which have none.
_CODES = """
af:Afrikaans am:Amharic ar:Arabic as:Assamese az:Azerbaijani ba:Bashkir be:Belarusian bg:Bulgarian bn:Bengali
bo:Tibetan br:Breton bs:Bosnian ca:Catalan cs:Czech cy:Welsh da:Danish de:German el:Greek en:English es:Spanish
et:Estonian eu:Basque fa:Persian fi:Finnish fo:Faroese fr:French ga:Irish gl:Galician gu:Gujarati ha:Hausa
haw:Hawaiian he:Hebrew hi:Hindi hr:Croatian ht:Haitian hu:Hungarian hy:Armenian id:Indonesian is:Icelandic
it:Italian ja:Japanese jv:Javanese ka:Georgian kk:Kazakh km:Khmer kn:Kannada ko:Korean la:Latin lb:Luxembourgish
ln:Lingala lo:Lao lt:Lithuanian lv:Latvian mg:Malagasy mi:Maori mk:Macedonian ml:Malayalam mn:Mongolian
mr:Marathi ms:Malay mt:Maltese my:Burmese ne:Nepali nl:Dutch nn:Nynorsk no:Norwegian oc:Occitan pa:Punjabi
pl:Polish ps:Pashto pt:Portuguese ro:Romanian ru:Russian sa:Sanskrit sd:Sindhi si:Sinhala sk:Slovak sl:Slovenian
sn:Shona so:Somali sq:Albanian sr:Serbian su:Sundanese sv:Swedish sw:Swahili ta:Tamil te:Telugu tg:Tajik th:Thai
tk:Turkmen tl:Tagalog tr:Turkish tt:Tatar uk:Ukrainian ur:Urdu uz:Uzbek vi:Vietnamese yi:Yiddish yo:Yoruba
yue:Cantonese zh:Chinese
"""
_NAMES = dict(pair.split(":") for pair in _CODES.split())


def name_of(language: str | None) -> str | None:
    """`de`, `de-AT`, `DE` and `german` are `German`. Raises ApiError for a code that is none.

    >>> name_of("zh-CN"), name_of("english"), name_of("Swiss German"), name_of("")
    ('Chinese', 'English', 'Swiss German', None)
    """
    said = " ".join((language or "").split())
    if not said:
        return None
    code = said.replace("_", "-").partition("-")[0].lower()
    if code in _NAMES:
        return _NAMES[code]
    if len(code) <= 3:
        raise refused(f"language: {said!r} is no code of ISO 639-1; send one as en or de, or a name", "language")
    return next((name for name in _NAMES.values() if name.lower() == said.lower()), said)
