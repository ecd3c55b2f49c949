"""Small words that give away a language in Latin letters, for :mod:`headrace.models.language`.

Only words that are rare in the other lists and in names; spelling as people type it in comments.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ENGLISH = _words(
    """
    a about above absolutely actually add after again against ago agree all almost already also
    although always am amazing an and angry annoying another any anyone anything app are aren't
    around as ask asked at away awesome awful back bad be beautiful because been before being
    believe best better between big both boring bought bring broken business but buy by call called
    can can't cannot cause change check cheap clean come coming completely cool could couldn't
    crazy customer cute damn day days deal definitely delivery did didn't different disappointed
    do does doesn't doing don't done down during each easy either else end enough even ever every
    everyone everything excellent experience expensive fast favorite feel feeling few find fine
    first flight food for found free friend friends from full fun funny game get gets getting give
    go goes going gonna good got great guess guy guys had hadn't half happened happens happy hard
    has hasn't hate have haven't having he hear hello help her here hey hi him his home hope hour
    hours how however i i'd i'll i'm i've idea if im important in instead interesting into is isn't
    issue it it's its job just keep kind knew know known last late later learn least less let let's
    life like liked likes listen little live long look looking looks lost lot love loved lovely
    loves made make makes making many maybe me mean means met might minutes miss money month more
    morning most move much must my myself need needs never new next nice night no nobody none not
    nothing now of off often oh old on once one only open or other our out over own part pay people
    perfect person phone place play please point poor price problem put quality question quite
    read ready real really reason received right room ruined run sad said same saw say says see
    seem seems seen send sent service she should shouldn't show sick since so some someone something
    soon sorry sounds stay still stop store stuff stupid such sucks sure take taking talk tell than
    thank thanks that that's the their them then there there's these they they're thing things
    think this those though thought through time times to today together told tomorrow tonight too
    took tried trip true try trying turn ugly under understand until up upset us use used using
    very wait waited waiting walk want wanted wants was wasn't waste watch way we we're we've week
    weeks well went were weren't what what's when where which while who whole why wife will wish
    with without woman women won't wonderful work worked working works world worse worst worth
    would wouldn't wow write wrong yeah year years yes yesterday yet you you're you've your yours
    """
)

MALAY = _words(
    """
    abang abis ada adakah adalah agar aja akan aku amat anak apa apakah asal atas atau awak ayo
    baca bagi bagus bahawa bahwa baik baju bang banget banyak barang baru bau bayar beb beda beg
    begini begitu beli belum benar benda bener berapa beri besar besok betul biar biasa bikin bila
    bisa bisnis boleh botol buat bukan buka bulan cakap cantik cepat coba cuba cuma dah dalam dan
    dapat dari daripada datang dekat dengan depan dgn dia diri dong dulu duit emang enak esok gak
    gaes gan ga gimana gitu guna gue habis hanya harga hari harum hidup hilang hingga hrs ibu ini
    itu iya jadi jangan je jgn jg juga jugak jumpa kah kak kakak kalau kalo kami kamu kan karena
    kasi kasih kata kau ke kebanyakan kecil keluar kena kenapa kerana kerja ketika kita klo kok
    korang korg krn ku kurang lagi lah lain laki laku lama lebih lepas lihat loh lu lupa macam mahal
    maka makan makin malah malam mana mantap mantul masa masih masuk mau mcm melihat memang mereka
    mesti minat minta minum minyak mmg moga mohon muka mulai murah nak nampak nanti ni nih nggak
    ngapain nonton nya nyesel orang org paham pagi pajak pakai pake paling pandai panjang pasti
    pegawai perempuan pergi perlu pernah pokoknya pulak pun punya rasa rasanya rumah saat saja sama
    sampai sana sangat saya sayang sbb sebab sebelum sedang sedap sejak sekali sekarang selain
    selalu semoga semua semuanya sempat sendiri seperti serta setiap setelah sgt siapa sih sikit
    sini situ skrg smua sngt sokmo suami sudah suka supaya susah tak tahan tahu tahun takde takut
    tapi tau tdk teman tengah tengok tentang terbaik terima terus tetap tgk tiada tidak tolong trus
    tu tuh tunggu tutup udah udh uang untuk utk wangi walaupun waktu ya yang yaudah yg
    """
)

HINDI = _words(
    """
    aaj aap aapka aapke aapki aapko ab abe abhi acha accha achha agar aisa aise aisi ap apka apke
    apki apko apna apne apni aur baad baat bahi bahut bakwas banaya banda bata batao bhai bhaiya
    bhi bhut bilkul bohot bola bolo bhosdike chahiye chal chalo chutiya desh dekh dekho dekha
    diya dono doston fir gaya gaye gayi ghar haan hai hain hamare hamari hame hamesha har hara
    hau hi hindustan ho hoga hogi hona hota hote hoti hua hue hui hum humara humare humko huye
    inka inke inki isi iska iske iski isko isliye itna itne itni jab jai jaise jaisi jata jate jati
    jayega jaye jhooth ji jise jiske jo kab kabhi kaha kahan kaise kaisa kam karke karna karne
    karo karta karte karti karunga kaun kha khali khatam ki kisi kisne kiya kiye ko kodi koi krdo
    kro krna krne krta krte kuch kuchh kutte kya kyo kyon kyu kyun kyunki lekin liya liye log logo
    logon maa magar mai main maine mat matlab mein mera mere meri milega mujhe mujhko muje nahi
    nahin nai nhi ne paisa paise pata pehle phir pta rah raha rahe rahi rha rhe rhi roz saala saale
    sab sabko sahi sakta sakte sakti sala sale salo sath se shukriya sirf suar suno tab tak tera
    tere teri tha thi thik tho thoda to toh tu tum tumhara tumhare tumhari tumko tujhe uska
    uske uski usko unka unke unki unko wahi wala wale wali wo woh yaar yah yaha yahan yahi ye yeh
    yha yr zyada ka ko ek k h nehi bahot ghus walo walay kay wapis hawa dena denge dete maar maro
    maare jana jao kb kon jawan ji na se ke jo krlya krdo bas ager kro unhn masla dam mara
    """
)
