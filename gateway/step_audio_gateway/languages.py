"""Languages by their codes, as the model is told of them."""

from __future__ import annotations

from step_audio_gateway.errors import refused

OWN = "English"  # of the question, so that it says nothing new

# ISO 639-1, and some of ISO 639-3 that speech services have besides.
_CODES = """
aa:Afar ab:Abkhazian ae:Avestan af:Afrikaans ak:Akan am:Amharic an:Aragonese ar:Arabic as:Assamese av:Avaric ay:Aymara
az:Azerbaijani ba:Bashkir be:Belarusian bg:Bulgarian bi:Bislama bm:Bambara bn:Bengali bo:Tibetan br:Breton bs:Bosnian
ca:Catalan ce:Chechen ceb:Cebuano ch:Chamorro cmn:Mandarin co:Corsican cr:Cree cs:Czech cu:Slavonic cv:Chuvash cy:Welsh
da:Danish de:German dv:Divehi dz:Dzongkha ee:Ewe el:Greek en:English eo:Esperanto es:Spanish et:Estonian eu:Basque
fa:Persian ff:Fulah fi:Finnish fil:Filipino fj:Fijian fo:Faroese fr:French fy:Frisian ga:Irish gd:Gaelic gl:Galician
gn:Guarani gu:Gujarati gv:Manx ha:Hausa haw:Hawaiian he:Hebrew hi:Hindi hr:Croatian ht:Haitian hu:Hungarian hy:Armenian
hz:Herero ia:Interlingua id:Indonesian ie:Interlingue ig:Igbo ii:Yi ik:Inupiaq io:Ido is:Icelandic it:Italian
iu:Inuktitut ja:Japanese jv:Javanese ka:Georgian kg:Kongo ki:Kikuyu kj:Kuanyama kk:Kazakh kl:Greenlandic km:Khmer
kn:Kannada ko:Korean kr:Kanuri ks:Kashmiri ku:Kurdish kv:Komi kw:Cornish ky:Kyrgyz la:Latin lb:Luxembourgish lg:Ganda
li:Limburgish ln:Lingala lo:Lao lt:Lithuanian lu:Luba lv:Latvian mg:Malagasy mh:Marshallese mi:Maori mk:Macedonian
ml:Malayalam mn:Mongolian mr:Marathi ms:Malay mt:Maltese my:Burmese na:Nauru nb:Norwegian nd:Ndebele ne:Nepali ng:Ndonga
nl:Dutch nn:Nynorsk no:Norwegian nr:Ndebele nv:Navajo ny:Chichewa oc:Occitan oj:Ojibwa om:Oromo or:Odia os:Ossetian
pa:Punjabi pi:Pali pl:Polish ps:Pashto pt:Portuguese qu:Quechua rm:Romansh rn:Rundi ro:Romanian ru:Russian
rw:Kinyarwanda sa:Sanskrit sc:Sardinian sd:Sindhi se:Sami sg:Sango si:Sinhala sk:Slovak sl:Slovenian sm:Samoan sn:Shona
so:Somali sq:Albanian sr:Serbian ss:Swati st:Sotho su:Sundanese sv:Swedish sw:Swahili ta:Tamil te:Telugu tg:Tajik
th:Thai ti:Tigrinya tk:Turkmen tl:Tagalog tn:Tswana to:Tongan tr:Turkish ts:Tsonga tt:Tatar tw:Twi ty:Tahitian ug:Uyghur
uk:Ukrainian ur:Urdu uz:Uzbek ve:Venda vi:Vietnamese vo:Volapuk wa:Walloon wo:Wolof wuu:Wu xh:Xhosa yi:Yiddish yo:Yoruba
yue:Cantonese za:Zhuang zh:Chinese zu:Zulu
"""
_ANY = ("", "auto", "multi", "mul", "und")  # clients' and ISO 639-3's words for "find out"
_NAMES = dict(pair.split(":") for pair in _CODES.split())


def name_of(language: str | None) -> str | None:
    """`de`, `de-AT`, `DE` and `german` are `German`; `auto` says nothing. Raises ApiError for a code that is none.

    >>> name_of("zh-CN"), name_of("english"), name_of("Swiss German"), name_of("")
    ('Chinese', 'English', 'Swiss German', None)
    """
    said = " ".join((language or "").split())
    if said.lower() in _ANY:
        return None
    code = said.replace("_", "-").partition("-")[0].lower()
    if code in _NAMES:
        return _NAMES[code]
    if len(code) <= 3:
        raise refused(f"language: {said!r} is no code of ISO 639-1; send one as en or de, or a name", "language")
    return next((name for name in _NAMES.values() if name.lower() == said.lower()), said)
